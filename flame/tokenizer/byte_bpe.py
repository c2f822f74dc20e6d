"""Training byte-level BPE, by ``tokenizers`` or by ``rustbpe``: both learn the same merges from the same text.

Ties between pairs of equal count go to the pair of lower ids in both, and here both number the bytes alike.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Literal

from tokenizers import Tokenizer, models, trainers

from flame.errors import ConfigError, need
from flame.tokenizer.byte_level import BYTES, CHARACTERS, Merge, byte_level_tokenizer, merges_of, model_merges
from flame.tokenizer.patterns import PATTERNS, split_pattern, splitter

Backend = Literal["auto", "tokenizers", "rustbpe"]


class BytePairTraining:
    """A training of byte-level BPE that has been found possible.

    Args:
        vocab_size: Size of the vocabulary, bytes and special tokens included.
        pattern: A name of ``PATTERNS``, or a regular expression.
        special: Special tokens, which get the last ids.
        backend: ``auto`` takes rustbpe, the faster one, if it is installed and the pattern is one of ``PATTERNS``.

    Raises:
        ConfigError: The vocabulary cannot hold bytes and special tokens, the pattern does not compile, a special token
            could also be learned from text, or the backend is not installed or cannot be used with the pattern.
    """

    def __init__(self, vocab_size: int, pattern: str, special: Sequence[str], backend: Backend = "auto") -> None:
        self.pattern = split_pattern(pattern)
        self.special = tuple(special)
        self.vocab_size = vocab_size - len(special)  # of what is learned
        if self.vocab_size < BYTES:
            raise ConfigError(
                f"--vocab_size {vocab_size} cannot hold {BYTES} bytes and {len(special)} special tokens: "
                f"make it at least {BYTES + len(special)}"
            )
        self._check_special()
        self.backend = _backend(pattern, backend)

    def run(self, texts: Iterator[str]) -> Tokenizer:
        """Learns from texts until they end, which takes memory for every distinct word."""
        merges = self._rustbpe(texts) if self.backend == "rustbpe" else self._tokenizers(texts)
        return byte_level_tokenizer(merges, self.pattern, self.special)

    def _check_special(self) -> None:
        for token in self.special:
            if len(splitter(self.pattern).pre_tokenize_str(token)) < 2:
                raise ConfigError(
                    f"special token '{token}' could be learned from text as well, and then means both: "
                    "write it like <|name|>"
                )

    def _rustbpe(self, texts: Iterator[str]) -> list[Merge]:
        import rustbpe

        tokenizer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.train_from_iterator(texts, self.vocab_size, pattern=self.pattern)
        merges = merges_of({bytes(token): rank for token, rank in tokenizer.get_mergeable_ranks()})
        if merges is None:
            raise RuntimeError("rustbpe learned ranks that are no merges: train with --backend tokenizers")
        return merges

    def _tokenizers(self, texts: Iterator[str]) -> list[Merge]:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = splitter(self.pattern)
        # As "special" tokens the bytes get the ids 0 to 255 in their order, rather than in that of their characters.
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=CHARACTERS,
            show_progress=sys.stderr.isatty(),
        )
        tokenizer.train_from_iterator(texts, trainer)
        return model_merges(json.loads(tokenizer.to_str())) or []


def _backend(pattern: str, wanted: Backend) -> Literal["tokenizers", "rustbpe"]:
    if wanted == "tokenizers":
        return "tokenizers"
    known = pattern in PATTERNS
    if wanted == "auto":
        return "rustbpe" if known and importlib.util.find_spec("rustbpe") else "tokenizers"
    if not known:
        raise ConfigError(
            "--backend rustbpe leaves out text that a pattern does not match: "
            f"use --backend tokenizers, or one of {', '.join(PATTERNS)}"
        )
    need("tokenizers", "rustbpe")
    return "rustbpe"
