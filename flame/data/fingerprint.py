"""Fingerprints of the data order: one hash per global batch, the same for any number of ranks and workers."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from flame.data.batch import Batch
from flame.data.loader import Loader


def fingerprints(loaders: Sequence[Loader], micro_batches: int) -> Iterator[str]:
    """Yields a hash of every global batch.

    Args:
        loaders: The loaders of all data-parallel ranks, in order.
        micro_batches: Micro-batches per step and rank.

    Yields:
        32 hexadecimal digits over input ids, labels and position ids, row by row in the order of the global batch.
    """
    iterators = [iter(loader) for loader in loaders]
    while True:
        batches = [batch for iterator in iterators for batch in islice(iterator, micro_batches)]
        if len(batches) < len(loaders) * micro_batches:
            return
        yield _digest(batches)


def _digest(batches: Sequence[Batch]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for inputs, labels in batches:
        planes = [inputs["input_ids"], labels, *(inputs[key] for key in sorted(inputs) if key != "input_ids")]
        # [B, planes, T]: rows one after the other, so that the size of micro-batches does not matter
        digest.update(torch.stack(planes, dim=1).contiguous().numpy().tobytes())
    return digest.hexdigest()
