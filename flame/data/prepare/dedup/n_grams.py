"""Hashes of word n-grams, all of a document at once."""

import numpy as np

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def n_gram_hashes(word_hashes: np.ndarray, length: int) -> np.ndarray:
    """Hashes all n-grams of a document.

    Args:
        word_hashes: Hashes of its words, uint64 [words].
        length: Words in an n-gram.

    Returns:
        uint64 [words - length + 1], or [0] for fewer words than that.
    """
    count = max(0, len(word_hashes) - length + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(length if count else 0):
        hashes *= _FACTOR  # arithmetic wraps
        hashes += word_hashes[offset : offset + count]
    return (hashes ^ (hashes >> np.uint64(31))) * _FACTOR
