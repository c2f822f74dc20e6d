"""Special tokens: which there are, what part each plays, and the chat template that goes with them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flame.errors import ConfigError, closest
from flame.tokenizer.chat_template import NANOCHAT_TEMPLATE

ROLES = ("bos", "eos", "pad")


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a tokenizer, in the order of their ids.

    Attributes:
        tokens: All of them.
        bos: The one that begins a document; empty for none.
        eos: The one that ends a document and generation.
        pad: The one that fills rows up.
        named: Attribute of the loaded tokenizer (``tokenizer.user_start_token``) -> token.
        chat_template: Jinja template of conversations; empty for none.
    """

    tokens: tuple[str, ...] = ()
    bos: str = ""
    eos: str = ""
    pad: str = ""
    named: tuple[tuple[str, str], ...] = ()
    chat_template: str = ""

    def roles(self) -> dict[str, str]:
        """Returns ``bos_token``, ``eos_token`` and ``pad_token``, those there are."""
        return {f"{role}_token": token for role in ROLES if (token := getattr(self, role))}


_CHAT_MARKS = tuple(f"{part}_{edge}" for part in ("user", "assistant", "python", "output") for edge in ("start", "end"))

SETS: dict[str, SpecialTokens] = {
    "plain": SpecialTokens(("<|bos|>", "<|eos|>", "<|pad|>"), "<|bos|>", "<|eos|>", "<|pad|>"),
    # nanochat has one token between documents, which ends generation too; conversations end in assistant_end.
    "nanochat": SpecialTokens(
        ("<|bos|>", *(f"<|{mark}|>" for mark in _CHAT_MARKS)),
        *("<|bos|>", "<|bos|>", "<|bos|>"),
        named=tuple((f"{mark}_token", f"<|{mark}|>") for mark in _CHAT_MARKS),
        chat_template=NANOCHAT_TEMPLATE,
    ),
    "none": SpecialTokens(),
}
"""Sets by name."""


def special_tokens(
    name: str, added: Sequence[str] = (), bos: str = "", eos: str = "", pad: str = "", template: str = ""
) -> SpecialTokens:
    """Puts together the special tokens that a user asks for.

    Args:
        name: A set, or tokens separated by commas.
        added: Further tokens, behind those of the set.
        bos: Replaces the set's; so do ``eos`` and ``pad``.
        eos: The token that ends a document.
        pad: The token that fills rows up.
        template: Chat template; empty for the set's.

    Raises:
        ConfigError: There is no such set, a token appears twice or is blank, or a role is played by none of them.
    """
    if name in SETS:
        chosen = SETS[name]
    elif "," in name or "<" in name or "[" in name:
        chosen = SpecialTokens(tuple(name.split(",")))
    else:
        raise ConfigError(
            f"no set of special tokens '{name}': name one of {', '.join(SETS)}, or list tokens such as "
            f"'<|bos|>,<|eos|>'.{closest(name, SETS)}"
        )
    tokens = (*chosen.tokens, *added)
    for token in tokens:
        if not token.strip() or token != token.strip():
            raise ConfigError(f"special token '{token}' is blank or has blanks around it: write it like <|name|>")
        if tokens.count(token) > 1:
            raise ConfigError(f"special token '{token}' is there twice: name it once")
    roles = {role: value or getattr(chosen, role) for role, value in zip(ROLES, (bos, eos, pad), strict=True)}
    for role, token in roles.items():
        if token and token not in tokens:
            raise ConfigError(f"--{role} '{token}' is not among the special tokens {' '.join(tokens)}: add it there")
    return replace(chosen, tokens=tokens, chat_template=template or chosen.chat_template, **roles)
