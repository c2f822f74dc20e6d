"""Fine-tuning on conversations: next-token prediction of what the assistant says.

[task]
name = "sft"
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flame.config import JobConfig, TaskOptions
from flame.data.chat.builtin import choose_template
from flame.data.chat.encoder import ChatEncoder
from flame.data.chat.layouts import LAYOUTS
from flame.errors import ConfigError
from flame.tasks.causal_lm import CausalLM, CausalLMOptions

log = logging.getLogger(__name__)


@dataclass
class SFTOptions(CausalLMOptions):
    """The ``[task]`` table of ``sft``."""

    name: str = "sft"
    """The task to train."""

    chat_template: str = ""
    """
    How conversations are written: a file with a Jinja template, `nanochat`, or `plain`; empty for the tokenizer's own,
    and if it has none, `nanochat` where it has that template's special tokens, else `plain`.
    """

    max_tokens: int = 0
    """Longest conversation; longer ones are treated as `data.too_long` says. 0 for as many as a row takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 0:
            raise ConfigError(f"task.max_tokens = {self.max_tokens} must be at least 0.")


class SFT(CausalLM):
    """Cross entropy of the assistant's tokens; the exported tokenizer has the chat template.

    Where ``model.config`` is a folder with weights, training starts at them, unless ``checkpoint.initial_load_path``
    names others.
    """

    Options = SFTOptions
    layouts = LAYOUTS
    options: SFTOptions

    def __init__(self, options: TaskOptions, tokenizer: PreTrainedTokenizerFast, config: JobConfig) -> None:
        super().__init__(options, tokenizer, config)
        chosen = choose_template(tokenizer, self.options.chat_template)
        log.info("chat template: %s", chosen.what)
        tokenizer.chat_template = chosen.source  # and so the exported one has it
        self._encoder = ChatEncoder(
            tokenizer,
            chosen.source,
            max_tokens=self._longest(),
            too_long=config.data.too_long,
            max_characters=config.data.max_document_bytes,
            add_bos=config.data.add_bos,
            add_eos=config.data.add_eos,
        )
        self._start()

    def encoder(self) -> ChatEncoder:  # type: ignore[override]
        return self._encoder

    def extend(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
        """Does what ``causal_lm`` does; and the exported model stops where the template ends an answer."""
        super().extend(model_class, config)
        ending, end = self._encoder.ending(), self.tokenizer.eos_token_id
        if ending is None:
            log.warning("the chat template ends an answer with no special token, so the model cannot learn to stop")
        elif ending != end:
            config.eos_token_id = [ending] if end is None else [ending, end]

    def _longest(self) -> int:
        """Tokens of a conversation that a row takes, in one piece where documents are isolated."""
        training = self.config.training
        piece = training.context_len if training.varlen and training.context_len else training.seq_len
        longest = min(piece, training.seq_len)
        if self.options.max_tokens > longest:
            raise ConfigError(
                f"task.max_tokens = {self.options.max_tokens} is more than a row or training.context_len takes "
                f"({longest}): raise training.seq_len, or lower it"
            )
        return self.options.max_tokens or longest

    def _start(self) -> None:
        """Starts from the folder that ``model.config`` names, if it holds weights."""
        checkpoint, folder = self.config.checkpoint, Path(self.config.model.config).expanduser()
        if checkpoint.initial_load_path:
            return
        if not (self.config.model.config and folder.is_dir() and any(folder.glob("*.safetensors"))):
            log.warning("task 'sft' starts from random weights: let model.config name an exported folder")
            return
        if not checkpoint.enable:
            raise ConfigError(f"starting from the weights in '{folder}' needs checkpoint.enable = true.")
        _check_vocabulary(folder, self.tokenizer)
        log.info("starts from the weights in %s", folder)
        checkpoint.initial_load_path, checkpoint.initial_load_in_hf = str(folder), True


def _check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises ConfigError if a token of the folder's own tokenizer has another id in the job's, which may have more."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    vocabulary = tokenizer.get_vocab()
    own = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    if changed := next((token for token, number in own.items() if vocabulary.get(token) != number), None):
        raise ConfigError(
            f"model.tokenizer_path is not the tokenizer of the weights in '{folder}' (token {changed!r} is "
            f"{vocabulary.get(changed)} instead of {own[changed]}); set it to that folder."
        )


TASK = SFT
