"""Which chat template a job trains with: the tokenizer's own, a file, nanochat's, or plain text."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flame.errors import ConfigError, DataError
from flame.tokenizer.chat_template import NANOCHAT_TEMPLATE
from flame.tokenizer.special_tokens import SETS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLAIN_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- 'User: ' + message.content + '\\n\\nAssistant:' }}
    {%- elif message.role == 'assistant' and not message.tool_calls %}
        {%- generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
        {{- '\\n\\n' if not loop.last }}
    {%- elif message.role == 'system' %}
        {{- message.content + '\\n\\n' }}
    {%- else %}
        {{- raise_exception('the plain chat template has no place for tools') }}
    {%- endif %}
{%- endfor %}
"""
"""Plain text, between the tokenizer's BOS token, if it has one, and its EOS token, which ends every answer."""


class Chosen(NamedTuple):
    """A chat template."""

    source: str
    what: str
    """Which one it is, for the log."""


def choose_template(tokenizer: "PreTrainedTokenizerFast", name: str) -> Chosen:
    """Finds the chat template of a job.

    Args:
        tokenizer: the job's.
        name: ``plain``, ``nanochat``, a file, or empty for the tokenizer's own; if it has none, ``nanochat`` where it
            has the special tokens for that, else ``plain``.

    Raises:
        ConfigError: no such file, or a tokenizer without the tokens that the template needs.
    """
    own = tokenizer.chat_template
    if not name and isinstance(own, dict) and "default" not in own:
        raise ConfigError(f"the tokenizer has chat templates {', '.join(own)} and no default: give one as a file")
    if not name and own:
        return Chosen(own["default"] if isinstance(own, dict) else own, "the tokenizer's own")
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in SETS["nanochat"].tokens if token not in vocabulary]
    if name == "nanochat" and lacking:
        raise ConfigError(f"task.chat_template = 'nanochat': the tokenizer has no special token {lacking[0]}")
    if name == "nanochat" or not name and not lacking:
        return Chosen(NANOCHAT_TEMPLATE, "nanochat's")
    if name in ("", "plain"):
        return _plain(tokenizer)
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"task.chat_template = '{name}' is no file, nor one of plain and nanochat")
    try:
        return Chosen(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"task.chat_template = '{name}' cannot be read: {error}") from error


def _plain(tokenizer: "PreTrainedTokenizerFast") -> Chosen:
    if tokenizer.eos_token is None:
        raise DataError(
            "the tokenizer has no EOS token for the plain chat template to end answers with: set task.chat_template"
        )
    return Chosen(
        PLAIN_TEMPLATE, "plain text (the tokenizer has none)" if not tokenizer.chat_template else "plain text"
    )
