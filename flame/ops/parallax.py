"""Parallax attention: softmax attention with a first-order correction along a second query.

Zuo et al. 2026, https://arxiv.org/abs/2605.29157: with softmax weights ``p`` of ``q . k`` and ``s = r . k``, the output
is ``sum_j p_j (1 + sum_l p_l s_l - s_j) v_j``.
"""

import torch
from torch import Tensor

from flame.ops.documents import by_document
from flame.ops.precision import wide
from flame.ops.rows import Span, against, by_rows, check_heads, fold, scaling, unfold, weigh


def parallel_parallax(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Causal parallax attention, in any floating dtype.

    Args:
        q, r: [B, T, HQ, K] the queries of the softmax and of the correction.
        k: [B, T, H, K]; ``HQ`` is a multiple of ``H``.
        v: [B, T, H, V].
        scale: of ``q . k``; None for ``K ** -0.5``. ``r . k`` is not scaled.
        window_size: how many keys a query sees, its own included.
        cu_seqlens: [N + 1] the borders of packed documents, with a batch of 1.

    Returns:
        [B, T, HQ, V] in the dtype of ``q``.

    Raises:
        ValueError: heads that do not divide, or borders that do not cover one row.
    """
    check_heads(q.shape[2], k.shape[2])
    return by_document(lambda q, r, k, v: (_correct(q, r, k, v, scale, window_size),), (q, r, k, v), cu_seqlens)[0]


def parallax_decode(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    window_size: int | None = None,
    cache_start: Tensor | None = None,
) -> Tensor:
    """The last queries [B, T, HQ, K] against a cache of keys [B, S, H, K] and values [B, S, H, V].

    Args:
        cache_start: [B] the first key of each row that is a token; those before it are padding.
        others: as in ``parallel_parallax``.

    Returns:
        [B, T, HQ, V]; zero for a query that sees no key.

    Raises:
        ValueError: heads that do not divide, or more queries than keys.
    """
    check_heads(q.shape[2], k.shape[2])
    if q.shape[1] > k.shape[1]:
        raise ValueError(f"{q.shape[1]} queries against {k.shape[1]} keys: the cache must hold the queries' own keys")
    return _correct(q, r, k, v, scale, window_size, cache_start)


def parallax_decode_one_step(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    window_size: int | None = None,
    cache_start: Tensor | None = None,
) -> Tensor:
    """``parallax_decode`` of one query; arguments and errors as there.

    Raises:
        ValueError: more than one query.
    """
    if q.shape[1] != 1:
        raise ValueError(f"one step takes one query per row, got {q.shape[1]}; use parallax_decode")
    return parallax_decode(q, r, k, v, scale, window_size, cache_start)


def _correct(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    window: int | None = None,
    cache_start: Tensor | None = None,
) -> Tensor:
    factor = scaling(scale, k)
    heads = k.shape[2]

    def body(span: Span, q: Tensor, r: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        scores, slopes = against(wide(q) * factor, wide(k)), against(wide(r), wide(k))
        hidden = span.hidden(q.device)
        if cache_start is not None:
            keys = torch.arange(span.start, span.last, device=q.device)
            hidden = hidden | (keys < cache_start.to(q.device)[:, None, None, None, None])
        # A finite floor: a row of padding sees no key, and -inf would make it NaN.
        weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(hidden, 0)
        mean = (weights * slopes).sum(-1, keepdim=True)
        return (weigh(weights * (1 + mean - slopes), wide(v)),)

    queries, keys = [fold(x, heads) for x in (q, r)], [x.transpose(1, 2) for x in (k, v)]
    return unfold(by_rows(body, queries, keys, window)[0]).to(q.dtype)


def parallax_by_token(
    q: Tensor, r: Tensor, k: Tensor, v: Tensor, scale: float | None = None, window: int | None = None
) -> Tensor:
    """What ``parallel_parallax`` computes for dense rows, query by query in float64."""
    factor = scaling(scale, k)
    group = q.shape[2] // k.shape[2]
    keys, values, rows = k.double().repeat_interleave(group, 2), v.double().repeat_interleave(group, 2), []
    for place in range(q.shape[1]):
        seen = slice(0 if window is None else max(0, place - window + 1), place + 1)
        weights = (torch.einsum("bhd,bshd->bhs", q[:, place].double(), keys[:, seen]) * factor).softmax(-1)
        slopes = torch.einsum("bhd,bshd->bhs", r[:, place].double(), keys[:, seen])
        plain = torch.einsum("bhs,bshd->bhd", weights, values[:, seen])
        steep = torch.einsum("bhs,bshd->bhd", weights * slopes, values[:, seen])
        rows.append(plain * (1 + (weights * slopes).sum(-1, keepdim=True)) - steep)
    return torch.stack(rows, 1)
