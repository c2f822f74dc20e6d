"""Fingerprints of the data order: one hash per global batch, the same for any number of ranks and workers."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from flame.data.batch import Batch, Inputs
from flame.data.job import AnyLoader
from flame.data.packing import IGNORE


def fingerprints(loaders: Sequence[AnyLoader], micro_batches: int) -> Iterator[str]:
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
        if "input_ids" not in inputs:
            _add_examples(digest, inputs, labels)
            continue
        planes = [inputs["input_ids"], labels, *(inputs[key] for key in sorted(inputs) if key != "input_ids")]
        # [B, planes, T]: rows one after the other, so that the size of micro-batches does not matter
        digest.update(torch.stack(planes, dim=1).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _add_examples(digest: Any, inputs: Inputs, labels: torch.Tensor) -> None:
    """Adds examples without their padding, which depends on what else is in the micro-batch."""
    values = next(value for name, value in inputs.items() if name != "attention_mask")
    for row, steps in enumerate(inputs["attention_mask"].sum(1).tolist()):
        own = labels[row][labels[row] != IGNORE]
        if len(own):  # else nothing but a place that a rank had no example for
            digest.update(values[row, :steps].contiguous().numpy().tobytes())
            digest.update(own.numpy().tobytes())
