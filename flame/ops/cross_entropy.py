"""Cross entropy over a vocabulary, from logits."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, get_world_size

from flame.ops.precision import wide

BLOCK = 1 << 18
"""Logits that go through the pointwise work at once on a CPU: 1 MiB in float32 stays in the cache of a core."""


@dataclass(frozen=True)
class Terms:
    """What the loss is made of; every method takes logits [M, V] and targets [M] of some rows."""

    label_smoothing: float = 0.0
    logit_scale: float = 1.0
    lse_square_scale: float = 0.0
    logit_softcapping: float | None = None
    ignore_index: int = -100

    def scores(self, logits: Tensor) -> Tensor:
        """The wide logits after scale and soft cap, ``cap * tanh(scale * x / cap)``."""
        scores = wide(logits)
        if self.logit_scale != 1:
            scores = scores * self.logit_scale
        if self.logit_softcapping is not None:
            scores = (scores / self.logit_softcapping).tanh() * self.logit_softcapping
        return scores

    def loss(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Per row the loss, its part ``lse_square_scale * lse^2`` and ``lse``; and the probabilities [M, V]."""
        valid = target != self.ignore_index
        probabilities = scores.softmax(-1)
        # The largest probability is at least 1 / V: no underflow, and no second pass of exponentials.
        lse = scores.amax(-1) - probabilities.amax(-1).log()
        aim = scores.gather(1, target.where(valid, 0).unsqueeze(1)).squeeze(1)
        if self.label_smoothing:
            aim = (1 - self.label_smoothing) * aim + self.label_smoothing * scores.mean(-1)
        square = (self.lse_square_scale * lse.square()).where(valid, 0)
        return (lse - aim).where(valid, 0) + square, square, lse, probabilities

    def gradient(self, scores: Tensor, target: Tensor, dloss: Tensor) -> tuple[Tensor, Tensor]:
        """The losses [M], and the gradient [M, V] of the logits that made ``scores``, from those [M] of the losses."""
        loss, _, lse, grad = self.loss(scores, target)
        valid = target != self.ignore_index
        if self.lse_square_scale:
            grad *= (1 + 2 * self.lse_square_scale * lse).unsqueeze(1)
        if self.label_smoothing:
            grad -= self.label_smoothing / scores.shape[1]
        aim = torch.full_like(lse, self.label_smoothing - 1).unsqueeze(1)
        grad.scatter_add_(1, target.where(valid, 0).unsqueeze(1), aim)
        if self.logit_softcapping is not None:
            grad *= 1 - (scores / self.logit_softcapping).square()
        return loss, grad.mul_((dloss * self.logit_scale).where(valid, 0).unsqueeze(1))


class CrossEntropy(torch.autograd.Function):
    """Keeps nothing but the logits; the gradient is made in blocks of rows."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, terms: Terms, inplace: bool) -> tuple[Tensor, Tensor]:
        """Returns the losses and their squared-lse part [N]."""
        parts = [terms.loss(terms.scores(logits[rows]), target[rows])[:2] for rows in blocks(logits)]
        loss, square = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(logits, target)
        ctx.mark_non_differentiable(square)
        ctx.terms, ctx.inplace = terms, inplace
        return loss, square

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, _: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient of the logits, in their own memory where that was asked for."""
        logits, target = ctx.saved_tensors
        dlogits = logits if ctx.inplace else torch.empty_like(logits)
        for rows in blocks(logits):
            _, grad = ctx.terms.gradient(ctx.terms.scores(logits[rows]), target[rows], dloss[rows])
            dlogits[rows] = grad.to(logits.dtype)
        return dlogits, None, None, None


def blocks(logits: Tensor) -> Iterator[slice]:
    """Rows of ``logits`` [N, V] that together hold about ``BLOCK`` numbers."""
    size = BLOCK if logits.device.type == "cpu" else BLOCK * 64
    rows = max(1, size // max(1, logits.shape[1]))
    for start in range(0, max(1, len(logits)), rows):
        yield slice(start, start + rows)


def refuse_shards(process_group: ProcessGroup | None) -> None:
    """Raises ValueError for a vocabulary that is spread over several ranks."""
    if process_group is not None and get_world_size(process_group) > 1:
        raise ValueError(
            f"process_group of {get_world_size(process_group)} ranks: the plain-PyTorch loss does not shard the"
            " vocabulary; pass None"
        )


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    logit_softcapping: float | None = None,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    process_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Unreduced cross entropy of every row.

    Args:
        logits: [N, V].
        target: [N] classes.
        label_smoothing: share of the target's mass that goes evenly to all classes.
        logit_scale: factor of the logits.
        lse_square_scale: factor of the squared log-partition added to the loss (z-loss).
        logit_softcapping: cap of ``cap * tanh(logits / cap)``, after the scale.
        ignore_index: the target of rows that have neither loss nor gradient.
        inplace_backward: the gradient may overwrite the logits.
        process_group: a group of one rank, or None.

    Returns:
        The losses [N], and the z-loss in them [N], which carries no gradient.

    Raises:
        ValueError: ``process_group`` has more ranks.
    """
    refuse_shards(process_group)
    terms = Terms(label_smoothing, logit_scale, lse_square_scale, logit_softcapping, ignore_index)
    return CrossEntropy.apply(logits, target, terms, inplace_backward)


def fused_cross_entropy_forward(self: Any, input: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """The ``forward`` of fla's ``FusedCrossEntropyLoss`` on any device: fla's own refuses what is not on a GPU.

    Args:
        self: the module with its options.
        input: logits [N, V].
        target: classes [N].

    Returns:
        The losses, reduced over the rows that count as the module says, and the z-loss in them where it is asked for.
    """
    # Through fla's module, where ``install`` has put what runs on this device.
    losses = importlib.import_module("fla.modules.fused_cross_entropy.ops").cross_entropy_loss(
        input,
        target,
        self.label_smoothing,
        self.logit_scale,
        self.lse_square_scale,
        self.logit_softcapping,
        self.ignore_index,
        self.inplace_backward,
        self.process_group,
    )
    if self.reduction != "none":
        count = (target != self.ignore_index).sum() if self.reduction == "mean" else 1
        losses = losses[0].sum() / count, losses[1].sum() / count
    return losses if self.return_z_loss else losses[0]
