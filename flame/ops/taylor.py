"""Attention with polynomials of the scores for weights: Based and ReBased.

Based takes the Taylor series of the exponential to the second order (Arora et al. 2024,
https://arxiv.org/abs/2402.18668), ReBased the square alone (Aksenov et al. 2024, https://arxiv.org/abs/2402.10644).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from flame.ops.precision import wide
from flame.ops.rows import Span, against, by_rows, fold, weigh


def parallel_based(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, use_norm: bool = True) -> Tensor:
    """Causal attention with the weights ``1 + s + s^2 / 2``.

    Args:
        q, k: [B, T, H, K].
        v: [B, T, H, V].
        scale: of the scores ``s``; None for ``K ** -0.5``.
        use_norm: divides by the sum of the weights.

    Returns:
        [B, T, H, V] in the dtype of ``q``.
    """
    o, z = _polynomial(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, exponential)
    return ((o / (z + 1e-6)) if use_norm else o).transpose(1, 2).to(q.dtype)


def parallel_rebased(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_normalize: bool = True,
    return_both: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention with the weights ``s^2``.

    Args:
        q, k: [B, T, H, K].
        v: [B, T, H, V].
        eps: added to the sum of the weights.
        use_scale: scales the scores by ``K ** -0.5``.
        use_normalize: divides by the sum of the weights.
        return_both: returns the sums apart, undivided.

    Returns:
        [B, T, H, V] in the dtype of ``q``; or, heads first, [B, H, T, V] and the sums [B, H, T].
    """
    o, z = _polynomial(q, k, v, q.shape[-1] ** -0.5 if use_scale else 1.0, torch.square)
    if return_both:
        return o.to(q.dtype), z.squeeze(-1).to(q.dtype)
    return ((o / (z + eps)) if use_normalize else o).transpose(1, 2).to(q.dtype)


def exponential(scores: Tensor) -> Tensor:
    """The exponential to the second order."""
    return 1 + scores + scores.square() / 2


def _polynomial(
    q: Tensor, k: Tensor, v: Tensor, scale: float, weight: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Weighted sums [B, H, T, V] and sums of weights [B, H, T, 1]."""

    def body(span: Span, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        weights = weight(against(wide(q) * scale, wide(k))).masked_fill(span.hidden(q.device), 0)
        return weigh(weights, wide(v)), weights.sum(-1, keepdim=True)

    o, z = by_rows(body, [fold(q, k.shape[2])], [x.transpose(1, 2) for x in (k, v)])
    return o.squeeze(2), z.squeeze(2)


def polynomial_by_token(
    q: Tensor, k: Tensor, v: Tensor, scale: float, weight: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The sums [B, T, H, V] and [B, T, H, 1] behind both functions, query by query in float64."""
    outputs, sums = [], []
    for place in range(q.shape[1]):
        scores = torch.einsum("bhd,bshd->bhs", q[:, place].double(), k[:, : place + 1].double())
        weights = weight(scores * scale)
        outputs.append(torch.einsum("bhs,bshd->bhd", weights, v[:, : place + 1].double()))
        sums.append(weights.sum(-1, keepdim=True))
    return torch.stack(outputs, 1), torch.stack(sums, 1)
