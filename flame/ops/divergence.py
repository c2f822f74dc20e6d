"""Kullback-Leibler divergence of a student's vocabulary distribution from a frozen teacher's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flame.ops.linear_cross_entropy import add_product
from flame.ops.precision import wide

CHUNKS = 8


class LinearDivergence(torch.autograd.Function):
    """``sum KL(softmax(t W_t^T) || softmax(x W^T)) / N``, a chunk of rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, target_x: Tensor, weight: Tensor, target_weight: Tensor, wide_sums: bool, train: bool
    ) -> Tensor:
        """Returns the loss, and keeps the gradients made while the logits of a chunk are there."""
        dtype = wide(weight[:0]).dtype if wide_sums else weight.dtype
        dx = torch.zeros_like(x) if train and ctx.needs_input_grad[0] else None
        dweight = torch.zeros_like(weight, dtype=dtype) if train and ctx.needs_input_grad[2] else None
        loss = torch.zeros((), dtype=wide(x[:0]).dtype, device=x.device)
        rows = -(-len(x) // max(1, min(CHUNKS, -(-len(weight) // x.shape[1]))))
        for start in range(0, len(x), max(1, rows)):
            part = slice(start, start + rows)
            student = wide(F.linear(x[part], weight)).log_softmax(-1)
            teacher = wide(F.linear(target_x[part], target_weight)).log_softmax(-1)
            mass = teacher.exp()
            loss += (mass * (teacher - student)).sum()
            grad = ((student.exp() - mass) / len(x)).to(x.dtype)
            if dx is not None:
                dx[part] = grad @ weight
            if dweight is not None:
                add_product(dweight, grad, x[part])
        ctx.save_for_backward(dx, None if dweight is None else dweight.to(weight.dtype))
        return loss / max(1, len(x))

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The kept gradients times that of the loss."""
        dx, dweight = (None if d is None else d * dloss.to(d.dtype) for d in ctx.saved_tensors)
        return dx, None, dweight, None, None, None


def fused_kl_div_loss(
    x: Tensor,
    target_x: Tensor,
    weight: Tensor,
    target_weight: Tensor,
    reduction: str = "batchmean",
    accumulate_grad_in_fp32: bool = True,
) -> Tensor:
    """The mean over rows of ``KL(teacher || student)`` between the softmaxes of two projections.

    Args:
        x: [N, D] of the student.
        target_x: [N, E] of the teacher, without gradient.
        weight: [V, D].
        target_weight: [V, E], without gradient.
        reduction: only ``batchmean``.
        accumulate_grad_in_fp32: sums the chunks' gradients of ``weight`` in float32.

    Raises:
        ValueError: another reduction, or a teacher that wants gradients.
    """
    if reduction != "batchmean":
        raise ValueError(f"reduction '{reduction}' is not batchmean")
    if target_x.requires_grad or target_weight.requires_grad:
        raise ValueError("the teacher of fused_kl_div_loss is frozen: detach target_x and target_weight")
    return LinearDivergence.apply(x, target_x, weight, target_weight, accumulate_grad_in_fp32, torch.is_grad_enabled())
