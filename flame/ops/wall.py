"""Wall attention: softmax attention whose keys fade channel by channel, and its step against a cache.

With ``P`` the running sums of the log gates, the score of query ``i`` and key ``j`` is
``sum_n q_in k_jn exp(P_in - P_jn)``, as in fla's ``WallAttention`` by Averbuch and Pai.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from flame.ops.decay import channel_scores
from flame.ops.documents import by_document
from flame.ops.forgetting import sink_score, with_sink
from flame.ops.precision import wide
from flame.ops.rows import Span, by_rows, check_heads, faded, fold, scaling, summed, unfold, weigh

LIMIT = 126.0
"""2 ** 126 is the largest power of two below which float32 and bfloat16 stay finite with room for a sum."""


def parallel_wall_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    g_scalar: Tensor | None = None,
    sink_bias: Tensor | None = None,
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Causal softmax attention with a log decay per channel of the keys.

    Args:
        q: [B, T, HQ, K].
        k: [B, T, H, K]; ``HQ`` is a multiple of ``H``.
        v: [B, T, H, V].
        g: [B, T, HQ, K] log decays, none above 0.
        g_scalar: [B, T, HQ] log forget gates, added to the scores as in ``parallel_forgetting_attn``.
        sink_bias: [HQ] the score of a key without a value.
        scale: of the scores; None for ``K ** -0.5``.
        window_size: how many keys a query sees, its own included.
        cu_seqlens: [N + 1] the borders of packed documents, with a batch of 1.

    Returns:
        [B, T, HQ, V] in the dtype of ``q``.

    Raises:
        ValueError: shapes that do not fit each other, or borders that do not cover one row.
    """
    check_heads(q.shape[2], k.shape[2])
    if g.shape != q.shape or (g_scalar is not None and g_scalar.shape != q.shape[:3]):
        raise ValueError(f"g {tuple(g.shape)} beside q {tuple(q.shape)}: give [B, T, HQ, K], for g_scalar [B, T, HQ]")
    factor = scaling(scale, k)
    sink = sink_score(sink_bias, q.shape[2], k.shape[2])

    def dense(q: Tensor, k: Tensor, v: Tensor, g: Tensor, g_scalar: Tensor | None) -> tuple[Tensor, ...]:
        return (_faded_channels(q, k, v, g, g_scalar, sink, factor, window_size),)

    return by_document(dense, (q, k, v, g, g_scalar), cu_seqlens)[0]


def _faded_channels(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    g_scalar: Tensor | None,
    sink: Tensor | None,
    scale: float,
    window: int | None,
) -> Tensor:
    heads = k.shape[2]
    total = fold(g.double().cumsum(1), heads)  # [B, H, G, T, K]
    queries, keys = [fold(q, heads), total], [k.transpose(1, 2), v.transpose(1, 2), total]
    narrow = True
    if g_scalar is not None:
        sums, narrow = summed(g_scalar, heads)
        queries.append(sums)
        keys.append(sums)

    def body(span: Span, q: Tensor, own: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        k, v, theirs = rest[len(queries) - 2 :][:3]
        scores = _scores(wide(q) * scale, wide(k).unsqueeze(2), own, theirs)
        if g_scalar is not None:
            scores = scores + faded(rest[0], rest[-1], narrow, scores.dtype)
        scores = scores.masked_fill(span.hidden(q.device), -torch.inf)
        return (weigh(with_sink(scores, sink), wide(v)),)

    return unfold(by_rows(body, queries, keys, window)[0]).to(q.dtype)


def _scores(q: Tensor, k: Tensor, own: Tensor, theirs: Tensor) -> Tensor:
    """Scores [B, H, G, C, S] of one block of queries; the keys [B, H, 1, S, K] end with the block's own."""
    left = k.shape[-2] - q.shape[-2]
    diagonal = channel_scores(q, k[..., left:, :], own)
    if left == 0:
        return diagonal
    # The sum before the block lies between those of its queries and of the earlier keys: no exponent is positive.
    reference = theirs[..., left - 1 : left, :]
    faded_q = q * (own - reference).to(q.dtype).exp()
    faded_k = k[..., :left, :] * (reference - theirs[..., :left, :]).to(q.dtype).exp()
    return torch.cat([faded_q @ faded_k.mT, diagonal], -1)


def build_wall_kv_cache(
    k: Tensor, g_cumsum: Tensor, chunk_size: int, *, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Keys scaled up to the start of their chunk of the cache, and the sums there.

    Args:
        k: [B, T, H, K].
        g_cumsum: [B, T, HQ, K] running sums of the log decays to base 2.
        chunk_size: tokens per chunk.
        out_dtype: of the keys; None for that of ``k``.

    Returns:
        ``k_j 2^(P_start - P_j)`` [B, T, HQ, K] and ``P_start`` [B, chunks, HQ, K]. Beyond 2^126, a decay of 87 in
        natural logarithm within one chunk, keys are cut: such a cache cannot hold them.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if k.dim() != 4 or g_cumsum.dim() != 4 or g_cumsum.shape[:2] != k.shape[:2] or g_cumsum.shape[-1] != k.shape[-1]:
        shapes = f"g_cumsum {tuple(g_cumsum.shape)} beside k {tuple(k.shape)}"
        raise ValueError(f"{shapes}: give [B, T, HQ, K] beside [B, T, H, K]")
    check_heads(g_cumsum.shape[2], k.shape[2])
    starts = g_cumsum[:, ::chunk_size].contiguous()
    lift = starts.float().repeat_interleave(chunk_size, 1)[:, : k.shape[1]] - g_cumsum.float()
    keys = k.repeat_interleave(g_cumsum.shape[2] // k.shape[2], 2).float() * lift.clamp(max=LIMIT - 6).exp2()
    return keys.to(out_dtype or k.dtype), starts


def parallel_wall_attn_decode(
    q: Tensor,
    v: Tensor,
    p_curr: Tensor,
    k_tilde: Tensor,
    r_cache: Tensor,
    sink_bias: Tensor | None,
    scale: float,
    cache_chunk_size: int,
    g_scalar_cumsum: Tensor | None = None,
    window_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The last queries against a cache of ``build_wall_kv_cache``.

    Args:
        q: [B, T, HQ, K].
        v: [B, S, H, V].
        p_curr: [B, T, HQ, K] the sums of log decays at the queries, to base 2.
        k_tilde: [B, S, HQ, K], ``r_cache``: [B, chunks, HQ, K]: the cache.
        sink_bias: [HQ] the score of a key without a value, or None.
        scale: of the scores.
        cache_chunk_size: tokens per chunk of the cache.
        g_scalar_cumsum: [B, S, HQ] running sums of the log forget gates, to base 2.
        window_size: how many keys a query sees, its own included.

    Returns:
        The outputs [B, T, HQ, V] in the dtype of ``v`` and the logarithms to base 2 of the weights' sums [B, T, HQ].

    Raises:
        ValueError: shapes that do not fit each other.
    """
    (batch, count, queries, width), (length, heads) = q.shape, v.shape[1:3]
    check_heads(queries, heads)
    chunks = r_cache.shape[1]
    if k_tilde.shape != (batch, length, queries, width) or chunks * cache_chunk_size < length:
        raise ValueError(
            f"k_tilde of shape {tuple(k_tilde.shape)} in {chunks} chunks does not hold {length} keys of"
            f" {queries} heads; give the cache that build_wall_kv_cache made"
        )
    keys = pad(torch.nan_to_num(k_tilde.float()), (0, 0, 0, 0, 0, chunks * cache_chunk_size - length))
    keys = keys.unflatten(1, (chunks, cache_chunk_size)).permute(0, 3, 1, 4, 2)  # [B, HQ, n, K, C]
    drop = p_curr.float().unsqueeze(1) - r_cache.float().unsqueeze(2)  # [B, n, T, HQ, K]
    own = (q.float().unsqueeze(1) * drop.clamp(max=LIMIT).exp2()).permute(0, 3, 1, 2, 4)  # [B, HQ, n, T, K]
    scores = (own @ keys).transpose(2, 3).flatten(3)[..., :length] * scale  # [B, HQ, T, S]
    scores = scores.unflatten(1, (heads, -1))
    if g_scalar_cumsum is not None:
        sums = fold(g_scalar_cumsum.float().unsqueeze(-1), heads) * math.log(2)
        scores = scores + sums[..., length - count :, :] - sums.mT
    hidden = Span(length - count, length, 0, window_size).hidden(q.device)
    scores = scores.masked_fill(hidden, -torch.inf)
    sink = sink_score(sink_bias, queries, heads)
    total = scores.logsumexp(-1, keepdim=True)
    total = total if sink is None else torch.logaddexp(total, sink)
    o = unfold(weigh((scores - total).exp(), v.transpose(1, 2).float())).to(v.dtype)
    return o, unfold(total).squeeze(-1) / math.log(2)


def wall_by_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    g_scalar: Tensor | None = None,
    sink_bias: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """What ``parallel_wall_attn`` computes for dense rows, query by query in float64."""
    factor = scaling(scale, k)
    group = q.shape[2] // k.shape[2]
    queries, keys, values = q.double(), k.double().repeat_interleave(group, 2), v.double().repeat_interleave(group, 2)
    total, rows = g.double().cumsum(1), []
    for place in range(q.shape[1]):
        seen = slice(0 if window is None else max(0, place - window + 1), place + 1)
        decay = (total[:, place, None] - total[:, seen]).exp()
        scores = torch.einsum("bhd,bshd,bshd->bsh", queries[:, place], keys[:, seen], decay) * factor
        if g_scalar is not None:
            sums = g_scalar.double().cumsum(1)
            scores = scores + sums[:, place, None] - sums[:, seen]
        if sink_bias is not None:
            scores = torch.cat([scores, sink_bias.double().expand(len(scores), 1, -1)], 1)
        rows.append(torch.einsum("bsh,bshd->bhd", scores.softmax(1)[:, : seen.stop - seen.start], values[:, seen]))
    return torch.stack(rows, 1)
