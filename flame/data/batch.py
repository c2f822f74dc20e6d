"""What a batch is: inputs by name, and labels."""

from typing import Any

import torch

Inputs = dict[str, Any]
"""What a forward pass is called with: tensors [B, T], and plain values that all ranks agree on."""

Batch = tuple[Inputs, torch.Tensor]
"""Inputs, and labels [B, T] that are -100 where not scored."""


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with its tensors on ``device``."""
    inputs, labels = batch
    moved = {name: value.to(device, non_blocking=True) if is_tensor(value) else value for name, value in inputs.items()}
    return moved, labels.to(device, non_blocking=True)


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    inputs, labels = batch
    return {name: value[rows] if is_tensor(value) else value for name, value in inputs.items()}, labels[rows]


def join_rows(batches: list[Batch]) -> Batch:
    """One batch of the rows of several, whose plain values are the same."""
    inputs = {
        name: torch.cat([held[name] for held, _ in batches]) if is_tensor(value) else value
        for name, value in batches[0][0].items()
    }
    return inputs, torch.cat([labels for _, labels in batches])


def is_tensor(value: Any) -> bool:
    """Whether an input is a tensor with one row per row of the batch."""
    return isinstance(value, torch.Tensor)
