"""Cross entropy straight from hidden states, without ever holding the logits of all tokens."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from flame.ops.cross_entropy import Terms, blocks, refuse_shards
from flame.ops.precision import wide


def fused_linear_cross_entropy_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcapping: float | None = None,
    num_chunks: int = 8,
    reduction: str = "mean",
    use_l2warp: bool = False,
    l2_penalty_factor: float = 1e-4,
    accumulate_grad_in_fp32: bool = True,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Cross entropy of ``x W^T + b``, chunk by chunk of rows; the gradients are made on the way forward.

    Args:
        x: [N, D].
        target: [N] classes.
        weight: [V, D].
        bias: [V].
        ignore_index, label_smoothing, logit_scale, logit_softcapping, process_group: as in ``cross_entropy_loss``.
        num_chunks: at most so many chunks; fewer where the vocabulary is small.
        reduction: ``mean`` over the rows that count (at least one), or ``sum``.
        use_l2warp: adds ``l2_penalty_factor / N * max_v logits`` to the gradient of each row's largest logit (RWKV).
        l2_penalty_factor: its strength.
        accumulate_grad_in_fp32: sums the chunks' gradients of ``weight`` and ``bias`` in float32.

    Raises:
        ValueError: another reduction, or a ``process_group`` of several ranks.
    """
    refuse_shards(process_group)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction '{reduction}' is neither mean nor sum")
    terms = Terms(label_smoothing, logit_scale, 0.0, logit_softcapping, ignore_index)
    penalty = l2_penalty_factor / max(1, len(x)) if use_l2warp else 0.0
    chunks = max(1, min(num_chunks, -(-len(weight) // x.shape[1])))
    plan = Plan(terms, -(-len(x) // chunks), reduction == "mean", penalty, accumulate_grad_in_fp32)
    return LinearCrossEntropy.apply(x, target, weight, bias, plan, torch.is_grad_enabled())


@dataclass(frozen=True)
class Plan:
    """How ``LinearCrossEntropy`` goes through its rows: ``rows`` at a time."""

    terms: Terms
    rows: int
    mean: bool
    penalty: float
    wide_sums: bool

    def chunk(
        self, x: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None, dloss: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The summed loss of some rows, and the gradient [M, V] of their logits in the dtype of ``x``."""
        logits = F.linear(x, weight, bias)
        total = torch.zeros_like(dloss)
        for rows in blocks(logits):
            part = logits[rows]
            loss, grad = self.terms.gradient(self.terms.scores(part), target[rows], dloss.expand(len(part)))
            if self.penalty:
                largest, index = part.max(-1, keepdim=True)
                grad.scatter_add_(1, index, wide(largest) * self.penalty)
            total += loss.sum()
            logits[rows] = grad.to(part.dtype)  # the logits are not needed any more
        return total, logits


def add_product(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """Adds ``grad^T x``, a product of the inputs' own dtype, to a sum that may be wider."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.mT, x)
    else:
        total += grad.mT @ x


class LinearCrossEntropy(torch.autograd.Function):
    """Keeps only the gradients of ``x``, ``weight`` and ``bias``, made while the logits of a chunk are there."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, train: bool
    ) -> Tensor:
        """Returns the reduced loss."""
        needs = [train and need for need in ctx.needs_input_grad]
        dtype = wide(weight[:0]).dtype if plan.wide_sums else weight.dtype
        dx = torch.zeros_like(x) if needs[0] else None
        dweight = torch.zeros_like(weight, dtype=dtype) if needs[2] else None
        dbias = torch.zeros_like(bias, dtype=dtype) if bias is not None and needs[3] else None
        w, b = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        count = (target != plan.terms.ignore_index).sum().clamp_min(1) if plan.mean else torch.ones((), device=x.device)
        dloss = count.to(wide(x[:0]).dtype).reciprocal()
        loss = torch.zeros_like(dloss)
        for start in range(0, len(x), max(1, plan.rows)):
            rows = slice(start, start + plan.rows)
            part, grad = plan.chunk(x[rows], target[rows], w, b, dloss)
            loss += part
            if dx is not None:
                dx[rows] = grad @ w
            if dweight is not None:
                add_product(dweight, grad, x[rows])
            if dbias is not None:
                dbias += grad.sum(0, dtype=dtype)
        ctx.save_for_backward(dx, *(None if d is None else d.to(weight.dtype) for d in (dweight, dbias)))
        return loss * dloss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The kept gradients times that of the loss."""
        dx, dweight, dbias = (None if d is None else d * dloss.to(d.dtype) for d in ctx.saved_tensors)
        return dx, None, dweight, dbias, None, None
