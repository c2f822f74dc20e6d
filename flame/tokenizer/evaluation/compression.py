"""How many bytes of text a token holds, and which tokens ever appear."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
from tokenizers import Tokenizer

_TEXTS_PER_CALL = 64


@dataclass
class Compression:
    """What a tokenizer makes of one text or corpus."""

    bytes: int = 0
    tokens: int = 0

    @property
    def bytes_per_token(self) -> float:
        """The higher, the shorter are sequences."""
        return self.bytes / max(1, self.tokens)


def compress(tokenizers: Mapping[str, Tokenizer], texts: Iterable[str], seen: np.ndarray) -> dict[str, Compression]:
    """Encodes texts with several tokenizers.

    Args:
        tokenizers: By name; the first is the one that ``seen`` is about.
        texts: Are read once, in batches.
        seen: Occurrences of each of the first tokenizer's ids, int64 ``[vocabulary]``; is added to.

    Returns:
        Name of a tokenizer -> its compression.
    """
    results = {name: Compression() for name in tokenizers}
    first, iterator = next(iter(tokenizers)), iter(texts)
    while batch := list(islice(iterator, _TEXTS_PER_CALL)):
        size = sum(len(text.encode()) for text in batch)
        for name, tokenizer in tokenizers.items():
            encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            results[name].bytes += size
            results[name].tokens += sum(map(len, encodings))
            if name == first:
                for encoding in encodings:
                    seen += np.bincount(np.array(encoding.ids, np.int64), minlength=len(seen))
    return results


@dataclass(frozen=True)
class VocabularyUse:
    """How a tokenizer's vocabulary is used by the texts that were read."""

    size: int
    special: int
    never_used: int
    """Tokens, special ones aside, that did not appear."""
    never_used_examples: list[str]
    rare: int
    """Tokens that appeared fewer than ten times."""
    longest: list[str]


def vocabulary_use(tokenizer: Tokenizer, seen: np.ndarray, examples: int = 10) -> VocabularyUse:
    """Says which tokens appeared, and which are the longest.

    Args:
        tokenizer: The tokenizer.
        seen: Occurrences of each id, ``[vocabulary]``.
        examples: How many tokens to name.
    """
    special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = [index for index in tokenizer.get_vocab().values() if index not in special]
    unused = sorted(index for index in ids if not seen[index])
    texts = {index: tokenizer.decode([index], skip_special_tokens=False) for index in ids}
    longest = sorted(texts.values(), key=lambda text: (-len(text), text))[:examples]
    return VocabularyUse(
        size=len(ids) + len(special),
        special=len(special),
        never_used=len(unused),
        never_used_examples=[texts[index] for index in unused[-examples:]],
        rare=sum(1 for index in ids if 0 < seen[index] < 10),
        longest=longest,
    )
