"""Which document comes next, and which source a row comes from: pure functions of the seed, with random access.

No table of the size of the corpus is ever made: a position is mapped to a document by a keyed permutation of
``[0, size)``, a Feistel network on the next larger power of four, applied again until the value falls inside.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDS = 6
_MASK = (1 << 64) - 1
# 2^64 divided by the golden ratio, and by the plastic number: multiples of them fill [0, 2^64) evenly.
_GOLDEN = 0x9E3779B97F4A7C15
_PLASTIC = 0xC13FA9A902A6328F


@dataclass(frozen=True)
class DocumentOrder:
    """The infinite sequence of a source's documents: every epoch holds each of them once.

    Attributes:
        size: Number of documents.
        seed: The job's seed.
        source: Number of the source in the job; sources of equal size still get different orders.
        shuffle: Whether an epoch is a pseudo-random permutation, another one each time, or the order of the files.
    """

    size: int
    seed: int
    source: int = 0
    shuffle: bool = True

    def documents(self, positions: np.ndarray) -> np.ndarray:
        """Maps positions in the sequence to document numbers.

        Args:
            positions: int64 array of any length; position ``p`` belongs to epoch ``p // size``.

        Returns:
            int64 array of document numbers in ``[0, size)``.
        """
        epochs, offsets = np.divmod(positions, self.size)
        if not self.shuffle:
            return offsets
        documents = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            documents[chosen] = permute(offsets[chosen], self.size, _keys(self.seed, self.source, int(epoch)))
        return documents


def permute(values: np.ndarray, size: int, keys: tuple[int, ...]) -> np.ndarray:
    """Applies a keyed permutation of ``[0, size)`` to int64 ``values`` in that range."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    result = values.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, keys)
        outside = result >= size
    return result.astype(np.int64)


def choose_source(weights: Sequence[float], seed: int, lane: int, row: int) -> int:
    """Chooses the source of a lane's row so that the shares of all rows follow the weights closely.

    The choice walks a low-discrepancy sequence over rows and lanes instead of drawing at random, so the shares are
    right over few rows already. A weight of 0 is never chosen.
    """
    point = (_keys(seed, -1, 0)[0] + row * _GOLDEN + lane * _PLASTIC) & _MASK
    bounds = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(bounds / bounds[-1], (point >> 11) / 2**53, side="right"))


def _feistel(values: np.ndarray, half_bits: int, keys: tuple[int, ...]) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> np.uint64(half_bits), values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right, key) & mask)
    return (left << np.uint64(half_bits)) | right


def _mix(values: np.ndarray, key: int) -> np.ndarray:
    """A keyed hash of uint64 values (the finaliser of SplitMix64); arithmetic wraps."""
    values = values * np.uint64(_GOLDEN) + np.uint64(key)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=256)
def _keys(seed: int, source: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"{seed}/{source}/{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))
