"""Products of queries and keys under a decay, without overflow for any decay."""

import torch
from torch import Tensor, nn

from flame.ops.values import largest

SPAN = 60.0
"""exp(60) is far from the largest float32 and bfloat16 (exp(88)), with room for the products."""

BLOCK = 16


def cumulative(g: Tensor) -> Tensor:
    """Running sums [R, H, C, D] of log decays inside each chunk, the own token included.

    In float64 where float32 would lose the small differences between large sums.
    """
    g = g if g.dtype == torch.float64 else g.float()
    return (g.double() if largest(g.detach().sum(-2)) > SPAN else g).cumsum(-2)


def head_scores(q: Tensor, k: Tensor, g: Tensor, diagonal: int = 0) -> Tensor:
    """``q_i . k_j * exp(g_i - g_j)`` for ``j <= i + diagonal``, else 0, with one decay per head.

    Args:
        q, k: [R, H, C, D].
        g: [R, H, C, 1] from ``cumulative``.
        diagonal: 0 to score the own token, -1 to leave it out.

    Returns:
        [R, H, C, C] in the dtype of ``q``.
    """
    return (q @ k.mT) * decay_mask(g, diagonal).to(q.dtype)


def decay_mask(g: Tensor, diagonal: int = 0) -> Tensor:
    """``exp(g_i - g_j)`` [R, H, C, C] for ``j <= i + diagonal``, else 0, from running sums [R, H, C, 1]."""
    outside = ~lower(g.shape[-2], diagonal, g.device)
    # Masked before the exponential: what lies above the diagonal would overflow.
    return (g - g.mT).masked_fill(outside, -torch.inf).exp()


def channel_scores(q: Tensor, k: Tensor, g: Tensor, diagonal: int = 0, g_q: Tensor | None = None) -> Tensor:
    """``sum_d q_id k_jd exp(g_id - g_jd)`` for ``j <= i + diagonal``, else 0, with one decay per channel.

    Moderate decays factor into ``(q exp(g - r)) (k exp(r - g))^T`` with one reference ``r`` per chunk. Where the sums
    span more than ``SPAN``, pairs of neighbouring blocks, single tokens first, see each other from the sum between
    them, where both exponents are negative, and become one block, until the chunk is whole.

    Args:
        q, k: [R, H, C, D].
        g: [R, H, C, D] from ``cumulative``.
        diagonal: 0 to score the own token, -1 to leave it out.
        g_q: [R, H, C, D] the sums of the queries, where they differ: ``before(g)`` for a state read before its update.

    Returns:
        [R, H, C, C] in the dtype of ``q``.
    """
    g_q, size = g if g_q is None else g_q, g.shape[-2]
    if q.dtype == torch.float16:  # which ends at 65,504
        return channel_scores(q.float(), k.float(), g, diagonal, g_q).to(q.dtype)
    if _span(g, g_q) <= SPAN:
        return _factored(q, k, g, g_q).masked_fill(~lower(size, diagonal, g.device), 0)
    missing = (1 << (size - 1).bit_length()) - size
    if missing:
        q, k = (nn.functional.pad(x, (0, 0, 0, missing)) for x in (q, k))
        same, g = g_q is g, _continued(g, missing)
        g_q = g if same else _continued(g_q, missing)
    scores = _own_scores(q, k, g, g_q, diagonal)
    while scores.shape[-1] < size:
        scores = _merged(scores, q, k, g, g_q)
    return scores.squeeze(-3)[..., :size, :size]


def _continued(g: Tensor, missing: int) -> Tensor:
    """``g`` [..., C, D] with its last sum repeated: tokens without decay."""
    return torch.cat([g, g[..., -1:, :].expand(*g.shape[:-2], missing, -1)], -2)


def _own_scores(q: Tensor, k: Tensor, g: Tensor, g_q: Tensor, diagonal: int) -> Tensor:
    """The score [..., C, 1, 1] of each token and itself, zero below ``diagonal`` 0."""
    own = (q * k).sum(-1) if g_q is g or diagonal < 0 else scaled(q * k, g_q - g).sum(-1)
    return (own if diagonal >= 0 else torch.zeros_like(own))[..., None, None]


def _merged(scores: Tensor, q: Tensor, k: Tensor, g: Tensor, g_q: Tensor) -> Tensor:
    """Scores [..., n / 2, 2 w, 2 w] of pairs of blocks from those inside each block [..., n, w, w]."""
    first, second = scores.unflatten(-3, (-1, 2)).unbind(-3)
    late, early, g_late, g_early = (
        x.unflatten(-2, (-1, 2, scores.shape[-1])).select(-3, index) for x, index in ((q, 1), (k, 0), (g_q, 1), (g, 0))
    )
    between = g_early[..., -1:, :]
    crossing = scaled(late, g_late - between) @ scaled(early, between - g_early).mT
    return torch.cat([torch.cat([first, torch.zeros_like(first)], -1), torch.cat([crossing, second], -1)], -2)


def channel_mix(scores: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """``sum_{j <= i} scores_ij v_jd exp(g_id - g_jd)``: values that decay channel by channel.

    Args:
        scores: [R, H, C, C], zero above the diagonal.
        v: [R, H, C, D].
        g: [R, H, C, D] from ``cumulative``.

    Returns:
        [R, H, C, D] in the dtype of ``v``.
    """
    if v.dtype == torch.float16:
        return channel_mix(scores.float(), v.float(), g).to(v.dtype)
    if _span(g, g) <= SPAN:
        first = g[..., :1, :].detach()
        return scaled(scores @ scaled(v, first - g), g - first)
    rows = []
    for start in range(0, g.shape[-2], BLOCK):
        block = slice(start, start + BLOCK)
        own = _diagonal_mix(scores[..., block, block], v[..., block, :], g[..., block, :])
        if start:
            reference = g[..., start - 1 : start, :]
            earlier = scores[..., block, :start] @ scaled(v[..., :start, :], reference - g[..., :start, :])
            own = own + scaled(earlier, g[..., block, :] - reference)
        rows.append(own)
    return torch.cat(rows, -2)


def before(g: Tensor) -> Tensor:
    """The running sums [R, H, C, D] without the own token, from those with it."""
    return nn.functional.pad(g[..., :-1, :], (0, 0, 1, 0))


def scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """``x * exp(exponent)`` in the dtype of ``x``; the exponential is taken in float32 at least."""
    exponent = exponent if x.dtype == torch.float64 else exponent.float()
    return x * exponent.exp().to(x.dtype)


def lower(size: int, diagonal: int, device: torch.device) -> Tensor:
    """[size, size], True for ``j <= i + diagonal``."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril(diagonal)


def _span(g: Tensor, g_q: Tensor) -> float:
    """How far running sums [..., C, D] lie from the first one, at most."""
    g, g_q = g.detach(), g_q.detach()
    span = largest(g - g[..., :1, :])
    return span if g_q is g else max(span, largest(g_q - g[..., :1, :]))


def _factored(q: Tensor, k: Tensor, g: Tensor, g_q: Tensor) -> Tensor:
    first = g[..., :1, :].detach()
    return scaled(q, g_q - first) @ scaled(k, first - g).mT


def _diagonal_mix(scores: Tensor, v: Tensor, g: Tensor) -> Tensor:
    if _span(g, g) <= SPAN:
        first = g[..., :1, :].detach()
        return scaled(scores @ scaled(v, first - g), g - first)
    return scaled(scores.unsqueeze(-1) * v.unsqueeze(-3), _pairwise(g, g, 0)).sum(-2)


def _pairwise(g_q: Tensor, g: Tensor, diagonal: int) -> Tensor:
    """``g_q_i - g_j`` [R, H, c, c, D], minus infinity where ``j > i + diagonal``."""
    outside = ~lower(g.shape[-2], diagonal, g.device).unsqueeze(-1)
    return (g_q.unsqueeze(-2) - g.unsqueeze(-3)).masked_fill(outside, -torch.inf)
