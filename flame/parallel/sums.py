"""Sums over a group of ranks, inside the graph."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _sum(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    value = value.contiguous().clone()
    dist.all_reduce(value, group=group)
    return value


class SummedGradient(torch.autograd.Function):
    """The identity, whose gradient is summed over a group: each rank makes other use of an equal value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _sum(grad_outputs[0], ctx.group), None


class SummedForward(torch.autograd.Function):
    """The sum over a group, which every rank then makes equal use of: its gradient is that of each term."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _sum(value, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


class SummedBoth(torch.autograd.Function):
    """The sum over a group, of which each rank makes other use: its gradient is summed too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _sum(value, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _sum(grad_outputs[0], ctx.group), None
