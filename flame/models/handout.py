"""Gives every rank its part of a model that exists whole on rank 0, however it is cut up."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.tensor import DTensor

from flame import compat
from flame.pieces import part_of


@torch.no_grad()
def hand_out(model: nn.Module, reference: nn.Module | None, buffer_device: torch.device | None) -> None:
    """Fills a model's parameters and buffers with rank 0's; collective over all ranks.

    Ranks may hold different names (pipeline stages) and different shards of one name. A tensor travels at a time, so
    that no rank needs memory for more than one whole tensor beside its own part.

    Args:
        model: this rank's part, with storage.
        reference: the whole model on the CPU on rank 0, None elsewhere.
        buffer_device: where buffers go; None leaves them where they are.
    """
    mine = {_hf_name(name): tensor for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    whole = dict([*reference.named_parameters(), *reference.named_buffers()]) if reference is not None else {}
    for name, shape, dtype in _wanted(mine, whole):
        device = torch.device(compat.DEVICE_TYPE)
        value = whole[name].to(device) if whole else torch.empty(shape, dtype=dtype, device=device)
        if dist.get_world_size() > 1:
            dist.broadcast(value.contiguous() if whole else value, src=0)
        if name in mine:
            _fill(mine[name], value)
    if buffer_device is not None:
        for name, buffer in model.named_buffers():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, buffer.to(buffer_device))


def _wanted(mine: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> list[tuple[str, torch.Size, torch.dtype]]:
    """What some rank holds, in the order of rank 0's model: the same list on every rank."""
    held: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(held, list(mine))
    names = {name for rank in held for name in rank}
    found: list[Any] = [[(name, value.shape, value.dtype) for name, value in whole.items() if name in names]]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def _fill(target: torch.Tensor, value: torch.Tensor) -> None:
    """Copies a whole tensor into what this rank holds of it."""
    if isinstance(target, DTensor):
        target.to_local().copy_(part_of(target, value))
    else:
        target.copy_(value)


def _hf_name(name: str) -> str:
    """The HuggingFace name of a parameter or buffer below activation checkpointing's wrapper."""
    return name.replace("_checkpoint_wrapped_module.", "")
