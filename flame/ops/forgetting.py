"""Softmax attention whose scores fade with a forget gate per head, and its step against a cache.

The forgetting transformer: Lin et al. 2025, https://arxiv.org/abs/2503.02130. A query ``i`` adds
``g_{j+1} + ... + g_i`` to its score of key ``j``.
"""

import torch
from torch import Tensor

from flame.ops.attention import attend
from flame.ops.documents import Borders, alike, by_document, join
from flame.ops.precision import wide
from flame.ops.rows import Span, against, by_rows, check_heads, exact, faded, fold, scaling, summed, unfold, weigh


def parallel_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    *,
    sink_bias: Tensor | None = None,
) -> Tensor:
    """Causal softmax attention with an optional forget gate and sink.

    Args:
        q: [B, T, HQ, K].
        k: [B, T, H, K]; ``HQ`` is a multiple of ``H``.
        v: [B, T, H, V].
        g: [B, T, HQ] log gates.
        scale: of the scores; None for ``K ** -0.5``.
        window_size: how many keys a query sees, its own included.
        cu_seqlens: [N + 1] the borders of packed documents, with a batch of 1.
        chunk_indices: a hint for other kernels; no effect.
        sink_bias: [HQ] the score of a key without a value, which only takes weight away.

    Returns:
        [B, T, HQ, V] in the dtype of ``q``.

    Raises:
        ValueError: heads that do not divide, a sink of another shape, or borders that do not cover one row.
    """
    check_heads(q.shape[2], k.shape[2])
    sink = sink_score(sink_bias, q.shape[2], k.shape[2])
    factor = scaling(scale, k)
    if g is None and sink_bias is None:
        left = -1 if window_size is None else window_size - 1
        return by_document(lambda q, k, v: (attend(q, k, v, factor, left),), (q, k, v), cu_seqlens)[0].to(q.dtype)

    def dense(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> tuple[Tensor, ...]:
        return (_gated(q, k, v, g, sink, factor, window_size),)

    return by_document(dense, (q, k, v, g), cu_seqlens)[0]


def parallel_forgetting_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """``parallel_attn`` with a forget gate; arguments and errors as there."""
    return parallel_attn(q, k, v, g, scale, window_size, cu_seqlens)


def _gated(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, sink: Tensor | None, scale: float, window: int | None
) -> Tensor:
    heads = k.shape[2]
    keys = [x.transpose(1, 2) for x in (k, v)]  # [B, H, T, D]
    queries, narrow = [fold(q, heads)], True  # [B, H, G, T, K]
    if g is not None:
        total, narrow = summed(g, heads)
        queries.append(total)
        keys.append(total)

    def body(span: Span, q: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        gates = () if g is None else (rest[0], rest[-1])
        k, v = (wide(x) for x in rest[len(queries) - 1 :][:2])
        scores = against(wide(q) * scale, k)  # [B, H, G, C, S]
        if gates:
            scores = scores + faded(*gates, narrow, scores.dtype)
        scores = scores.masked_fill(span.hidden(q.device), -torch.inf)
        return (weigh(with_sink(scores, sink), v),)

    return unfold(by_rows(body, queries, keys, window)[0]).to(q.dtype)


def sink_score(sink_bias: Tensor | None, queries: int, heads: int) -> Tensor | None:
    """The sink's scores [HQ] beside folded ones, [H, G, 1, 1]; raises ValueError unless each head has one."""
    if sink_bias is None:
        return None
    if sink_bias.shape != (queries,):
        raise ValueError(f"sink_bias of shape {tuple(sink_bias.shape)} is not one number for each of {queries} heads")
    return wide(sink_bias).unflatten(0, (heads, -1))[..., None, None]


def with_sink(scores: Tensor, sink: Tensor | None) -> Tensor:
    """Weights [..., C, S] of scores beside the score of a sink, which has no value."""
    if sink is None:
        return scores.softmax(-1)
    total = torch.logaddexp(scores.logsumexp(-1, keepdim=True), sink.to(scores.dtype))
    return (scores - total).exp()


def attn_decoding_one_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor = None,  # pyright: ignore[reportArgumentType]
    do_gate_scale: bool = False,
    *,
    window_size: int | None = None,
    sink_bias: Tensor | None = None,
) -> Tensor:
    """One query per document, at its last token.

    Args:
        q: [1, N, HQ, K] the queries.
        k: [1, T, H, K], ``v``: [1, T, H, V], ``g``: [1, T, HQ]: the packed caches.
        cu_seqlens: [N + 1] the borders of the caches.
        do_gate_scale: scales the gates as the scores.
        others: as in ``parallel_attn``.

    Returns:
        [1, N, HQ, V]; zero for an empty cache or a window of 0.

    Raises:
        ValueError: no borders, a negative window, heads that do not divide, or borders that do not cover the caches.
    """
    if cu_seqlens is None:
        raise ValueError("attn_decoding_one_step needs cu_seqlens, the borders of the packed caches")
    if window_size is not None and window_size < 0:
        raise ValueError(f"window_size={window_size} is negative; give the number of keys to see")
    check_heads(q.shape[2], k.shape[2])
    factor = scaling(scale, k)
    heads, borders = k.shape[2], Borders.of(cu_seqlens, k.shape[1])
    sink = sink_score(sink_bias, q.shape[2], heads)
    queries = Borders(list(range(q.shape[1])), [1] * q.shape[1])
    outputs, batches = [], []
    for documents in alike(borders.lengths) if window_size != 0 else []:
        cache, own = borders.batch(documents, q.device), queries.batch(documents, q.device)
        with exact(q):
            scores = against(wide(fold(own.take(q[0]), heads)) * factor, wide(cache.take(k[0]).transpose(1, 2)))
        if g is not None:
            total = cache.take(g[0]).double().cumsum(1)  # padding adds nothing
            bias = fold((total[:, -1:] - total).unsqueeze(-1), heads).mT
            scores = scores + (bias * (factor if do_gate_scale else 1)).to(scores.dtype)  # [n, H, G, 1, S]
        hidden = cache.padding
        if window_size is not None:
            ends = (~hidden).sum(1, keepdim=True)
            hidden = hidden | (torch.arange(hidden.shape[1], device=q.device) < ends - window_size)
        weights = with_sink(scores.masked_fill(hidden[:, None, None, None], -torch.inf), sink)
        with exact(q):
            outputs.append(unfold(weigh(weights, wide(cache.take(v[0]).transpose(1, 2)))).to(v.dtype))
        batches.append(own)
    if not outputs:
        return v.new_zeros(*q.shape[:3], v.shape[-1])
    return join(outputs, batches, q.shape[1]).unsqueeze(0)


def forgetting_by_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    scale: float | None = None,
    window: int | None = None,
    sink_bias: Tensor | None = None,
) -> Tensor:
    """What ``parallel_attn`` computes for dense rows, query by query in float64."""
    factor = scaling(scale, k)
    group = q.shape[2] // k.shape[2]
    queries, keys, values = q.double(), k.double().repeat_interleave(group, 2), v.double().repeat_interleave(group, 2)
    gates = torch.zeros(q.shape[:3], dtype=torch.float64) if g is None else g.double()
    rows = []
    for place in range(q.shape[1]):
        seen = slice(0 if window is None else max(0, place - window + 1), place + 1)
        scores = torch.einsum("bhd,bshd->bhs", queries[:, place], keys[:, seen]) * factor
        later = gates[:, seen].flip(1).cumsum(1).flip(1) - gates[:, seen]  # [B, S, H]
        scores = scores + later.transpose(1, 2)
        if sink_bias is not None:
            scores = torch.cat([scores, sink_bias.double()[None, :, None].expand(len(scores), -1, 1)], -1)
        weights = scores.softmax(-1)[..., : seen.stop - seen.start]
        rows.append(torch.einsum("bhs,bshd->bhd", weights, values[:, seen]))
    return torch.stack(rows, 1)
