"""Which document comes next: a pure function of the seed, with random access.

No table of the size of the corpus is ever made: a position is mapped to a document by a keyed permutation of
``[0, size)``, a Feistel network on the next larger power of four, applied again until the value falls inside.

Where documents that lie together are read together, whole blocks of them are permuted, and the documents inside each
block: the positions of an epoch are then those of its blocks, and places beyond the end of the last, shorter block
are holes.
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

HOLE = -1
"""Stands for a position that has no document."""

_ROUNDS = 6
_SMALL = 1024  # positions of an epoch up to which it is kept as a whole, since lanes read many of them at once
# 2^64 divided by the golden ratio: its multiples fill [0, 2^64) evenly.
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class DocumentOrder:
    """The infinite sequence of a source's documents: every epoch holds each of them once.

    Attributes:
        size: Number of documents.
        seed: The job's seed.
        source: Number of the source in the job; sources of equal size still get different orders.
        shuffle: Whether an epoch is a pseudo-random permutation, another one each time, or the order of the files.
        block: Documents that stay together.
    """

    size: int
    seed: int
    source: int = 0
    shuffle: bool = True
    block: int = 1

    @property
    def epoch(self) -> int:
        """Positions of an epoch, holes included."""
        return -(-self.size // self.block) * self.block

    def positions(self, lane: int | np.ndarray, lanes: int, ordinals: np.ndarray) -> np.ndarray:
        """Says where a lane's documents are in the sequence: lanes take turns, each with a whole block.

        Args:
            lane: The lane, in ``[0, lanes)``, or an array of lanes that broadcasts with ``ordinals``.
            lanes: Number of lanes.
            ordinals: int64 array: 0 for the lane's first document, holes counted.
        """
        turns, places = np.divmod(ordinals, self.block)
        return (lane + turns * lanes) * self.block + places

    def documents(self, positions: np.ndarray) -> np.ndarray:
        """Maps positions in the sequence to document numbers.

        Args:
            positions: int64 array of any length; position ``p`` belongs to epoch ``p // epoch``.

        Returns:
            int64 array of document numbers in ``[0, size)``, and ``HOLE`` where there is none.
        """
        epochs, offsets = np.divmod(positions, self.epoch)
        if self.shuffle:
            shuffled = np.empty_like(offsets)
            for epoch in np.unique(epochs):
                chosen = epochs == epoch
                if self.epoch <= _SMALL:
                    shuffled[chosen] = _whole_epoch(self, int(epoch))[offsets[chosen]]
                else:
                    shuffled[chosen] = self.shuffled(offsets[chosen], int(epoch))
            offsets = shuffled
        if self.block == 1:
            return offsets
        return np.where(offsets < self.size, offsets, HOLE)

    def shuffled(self, offsets: np.ndarray, epoch: int) -> np.ndarray:
        """What takes the places ``offsets`` of an epoch: int64 in ``[0, epoch)``, of which some may be no documents."""
        keys = _keys(self.seed, self.source, epoch)
        if self.block == 1:
            return permute(offsets, self.size, keys)
        turns, places = np.divmod(offsets, self.block)
        # Positions come in runs of a block, which is looked up once.
        first = np.flatnonzero(np.diff(turns, prepend=-1))
        blocks = permute(turns[first], self.epoch // self.block, keys)
        blocks = np.repeat(blocks, np.diff(first, append=len(turns)))
        # Every block has keys of its own, made of the epoch's and the block's number.
        return blocks * self.block + permute(places, self.block, keys, blocks)


@functools.lru_cache(maxsize=512)
def _whole_epoch(order: DocumentOrder, epoch: int) -> np.ndarray:
    return order.shuffled(np.arange(order.epoch), epoch)


def permute(values: np.ndarray, size: int, keys: tuple[int, ...], tweaks: np.ndarray | None = None) -> np.ndarray:
    """Applies a keyed permutation of ``[0, size)`` to int64 ``values`` in that range.

    Args:
        values: What is permuted.
        size: How many values there are.
        keys: One per round of the network.
        tweaks: int64, one per value: equal tweaks belong to one permutation. None for the same everywhere.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    result = values.astype(np.uint64)
    # [rounds, values or 1]
    schedule = np.array(keys, np.uint64)[:, None]
    if tweaks is not None:
        schedule = schedule + _mix(tweaks.astype(np.uint64), schedule[0])
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, schedule if tweaks is None else schedule[:, outside])
        outside = result >= size
    return result.astype(np.int64)


def point(seed: int) -> int:
    """Returns a number in ``[0, 2^64)`` that depends on the seed alone."""
    return _keys(seed, -1, 0)[0]


def scattered(count: int, *key: int) -> np.ndarray:
    """Returns a permutation of ``[0, count)``, int64, that depends on the key alone."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return _mix(np.arange(count, dtype=np.uint64), np.frombuffer(digest, "<u8")).argsort(kind="stable")


def _feistel(values: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> np.uint64(half_bits), values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right, key) & mask)
    return (left << np.uint64(half_bits)) | right


def _mix(values: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A keyed hash of uint64 values (the finaliser of SplitMix64); arithmetic wraps."""
    values = values * np.uint64(_GOLDEN) + key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=256)
def _keys(seed: int, source: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"{seed}/{source}/{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))
