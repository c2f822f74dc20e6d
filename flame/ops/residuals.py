"""Attention residuals (arXiv:2603.15031): a layer reads a softmax mixture of all earlier residual sources."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from flame.ops.norms import normalised
from flame.ops.precision import wide


class Mixture(torch.autograd.Function):
    """``o = sum_l p_l v_l`` with ``p = softmax_l(direction . rms_norm(v_l))`` for sources ``v_l`` [M, D].

    The gradient is written out because each source is large and there may be dozens: nothing of their size is kept
    beside themselves, and each is read twice on the way back.
    """

    @staticmethod
    def forward(ctx: Any, direction: Tensor, eps: float, *sources: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mixture [M, D] in the dtype of the direction, and the weights [L, M]."""
        scales, scores = [], []
        with _full_precision(direction.device.type):
            for source in sources:
                values = wide(source)
                norm = torch.linalg.vector_norm(values, dim=-1)  # [M]
                scales.append(norm.square_().div_(values.shape[-1]).add_(eps).rsqrt_())
                scores.append((values @ direction).mul_(scales[-1]))
        scale, score = torch.stack(scales), torch.stack(scores)  # [L, M]
        weights = score.softmax(0)
        mixed = weights[0, :, None] * sources[0]
        for source, weight in zip(sources[1:], weights[1:], strict=True):
            mixed.addcmul_(wide(source), weight[:, None])
        ctx.save_for_backward(direction, scale, score, weights, *sources)
        ctx.mark_non_differentiable(weights)
        return mixed, weights

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any = None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of the direction and of every source."""
        direction, scale, score, weights, *sources = ctx.saved_tensors
        reward = torch.stack([(dy * source).sum(-1) for source in sources])  # [L, M]
        dscore = weights * (reward - (weights * reward).sum(0))
        along = dscore * scale  # [L, M] of direction . v
        inward = -dscore * score * scale.square() / direction.shape[-1]  # [L, M] of the norm of v
        ddirection, gradients = torch.zeros_like(direction), []
        for index, source in enumerate(sources):
            values = wide(source)
            gradient = (weights[index, :, None] * dy).addcmul_(along[index, :, None], direction)
            gradients.append(gradient.addcmul_(inward[index, :, None], values).to(source.dtype))
            ddirection += along[index] @ values
        return ddirection, None, *gradients


def _full_precision(device: str) -> AbstractContextManager[Any]:
    """Scores in float32 also under autocast, which would make their products bfloat16."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def fused_attnres(
    query: Tensor,
    residuals: Sequence[Tensor],
    rms_weight: Tensor,
    output_rms_weight: Tensor | None = None,
    rms_eps: float = 1e-6,
    scale: float = 1.0,
    return_weights: bool = False,
    checkpoint_level: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Mixes residual sources by the softmax, over sources, of ``scale * query . rms_norm(source)``.

    Args:
        query: [D] or [D, 1].
        residuals: L sources [..., D].
        rms_weight: [D] of the norm inside the score.
        output_rms_weight: [D]; where given, the mixture is RMS-normalised with it.
        rms_eps: of both norms.
        scale: of the scores.
        return_weights: also return the softmax [L, ...], which carries no gradient.
        checkpoint_level: 0 or 1, fla's trade of memory for time; no difference here.

    Raises:
        ValueError: there is no source, or another checkpoint level.
    """
    if len(residuals) == 0:
        raise ValueError("residuals must hold at least one source")
    if checkpoint_level not in (0, 1):
        raise ValueError(f"checkpoint_level={checkpoint_level} is neither 0 nor 1")
    shape, dtype = residuals[0].shape, residuals[0].dtype
    direction = wide(query).flatten() * wide(rms_weight).flatten() * scale
    mixed, weights = Mixture.apply(direction, rms_eps, *(source.reshape(-1, shape[-1]) for source in residuals))
    if output_rms_weight is not None:
        mixed = normalised(mixed, output_rms_weight, None, rms_eps, True)
    mixed = mixed.to(dtype).view(shape)
    return (mixed, weights.view(len(residuals), *shape[:-1])) if return_weights else mixed
