"""Split patterns of byte-level BPE: which stretches of text merges may not cross.

All of them mean the same to the two engines that read them, Oniguruma (``tokenizers``) and fancy-regex (``tiktoken``,
``rustbpe``).
"""

from tokenizers import Regex, pre_tokenizers

from flame.errors import ConfigError

_CONTRACTIONS = r"'(?i:[sdmt]|ll|ve|re)"
_WORD = r"[^\r\n\p{L}\p{N}]?+\p{L}+"
_REST = (r" ?[^\s\p{L}\p{N}]++[\r\n]*", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

PATTERNS: dict[str, str] = {
    "gpt2": "|".join((r"'(?:[sdmt]|ll|ve|re)", r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", *_REST[2:])),
    "gpt4": "|".join((_CONTRACTIONS, _WORD, r"\p{N}{1,3}", *_REST)),
    "nanochat": "|".join((_CONTRACTIONS, _WORD, r"\p{N}{1,2}", *_REST)),
    "o200k": "|".join(
        (
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            *_REST[2:],
        )
    ),
}
"""Name -> regular expression: GPT-2's, cl100k's (GPT-4), the same with numbers in pairs, and o200k's (GPT-4o)."""


def split_pattern(name: str) -> str:
    """Returns the regular expression of a name, or ``name`` itself if it is a regular expression.

    Raises:
        ConfigError: It is neither.
    """
    if name in PATTERNS:
        return PATTERNS[name]
    known = ", ".join(PATTERNS)
    if name.isidentifier() or not name:
        raise ConfigError(f"no split pattern '{name}': name one of {known}, or give a regular expression")
    try:
        Regex(name)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigError(
            f"the split pattern '{name}' does not compile ({error}): name one of {known}, or mend it"
        ) from error
    return name


def splitter(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Returns the pre-tokenizer that splits by a regular expression and writes bytes as printable characters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
