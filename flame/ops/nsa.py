"""Native sparse attention: Yuan et al. 2025, https://arxiv.org/abs/2502.11089.

The choice of blocks only masks here: all scores of a block of queries are computed, so the cost is that of full
attention, in the memory of one block of queries.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from flame.ops.documents import Borders, by_document
from flame.ops.precision import wide
from flame.ops.rows import Span, against, by_rows, check_heads, fold, scaling, unfold, weigh


def parallel_nsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_cmp: Tensor | None = None,
    g_slc: Tensor | None = None,
    g_swa: Tensor | None = None,
    block_indices: Tensor | None = None,
    block_counts: Tensor | int = 16,
    block_size: int = 64,
    window_size: int = 0,
    scale: float | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention over means of blocks, over chosen blocks and over the latest keys.

    The sum, under gates, of attention over the means of whole blocks, over the keys of chosen blocks, and over the
    latest keys. Chosen are the first block, the query's own and the one before, then those of the greatest weight.

    Args:
        q: [B, T, HQ, K].
        k: [B, S, H, K], ``v``: [B, S, H, V]; fewer queries than keys are the last tokens.
        g_cmp, g_slc, g_swa: [B, T, HQ] the gates; without ``g_cmp`` there is no attention over means.
        block_indices: [B, T, H, N] the chosen blocks, none where negative; None to choose.
        block_counts: how many blocks to choose, or [B, T, H] for each query.
        block_size: keys per block.
        window_size: how many of the latest keys the third part sees; 0 for no such part.
        scale: of the scores; None for ``K ** -0.5``.
        cu_seqlens: [N + 1] the borders of packed documents, with a batch of 1; or those of queries and of keys.

    Returns:
        [B, T, HQ, V] in the dtype of ``q``.

    Raises:
        ValueError: heads that do not divide, nothing to choose blocks by, no gate for the window, or borders that do
            not cover one row.
    """
    check_heads(q.shape[2], k.shape[2])
    if g_cmp is None and block_indices is None:
        raise ValueError("NSA chooses blocks by g_cmp's attention over means; give g_cmp or block_indices")
    if window_size > 0 and g_swa is None:
        raise ValueError(f"window_size={window_size} without g_swa, its gate; give the gate or a window of 0")
    factor = scaling(scale, k)
    counts = block_counts if isinstance(block_counts, Tensor) else None
    most = int(block_counts.max()) if isinstance(block_counts, Tensor) else block_counts

    def dense(q: Tensor, k: Tensor, v: Tensor, *given: Tensor | None) -> tuple[Tensor, ...]:
        return (_native(q, k, v, given, most, block_size, window_size, factor),)

    own = (g_cmp, g_slc, g_swa, block_indices, counts)
    if isinstance(cu_seqlens, tuple):
        if not torch.equal(*cu_seqlens):
            return _each(dense, q, (k, v), own, *cu_seqlens)
        cu_seqlens = cu_seqlens[0]
    return by_document(dense, (q, k, v, *own), cu_seqlens)[0]


def _each(
    dense: Callable[..., tuple[Tensor, ...]],
    q: Tensor,
    keys: tuple[Tensor, ...],
    own: tuple[Tensor | None, ...],
    cu_queries: Tensor,
    cu_keys: Tensor,
) -> Tensor:
    """Documents with fewer queries than keys, one by one: decoding has few."""
    queries, caches = Borders.of(cu_queries, q.shape[1]), Borders.of(cu_keys, keys[0].shape[1])
    outputs = []
    for index, (start, count) in enumerate(zip(queries.starts, queries.lengths, strict=True)):
        place = slice(caches.starts[index], caches.starts[index] + caches.lengths[index])
        given = [None if x is None else x[:, start : start + count] for x in own]
        if count:
            outputs.append(dense(q[:, start : start + count], *[x[:, place] for x in keys], *given)[0])
    return torch.cat(outputs, 1)


def _native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    given: tuple[Tensor | None, ...],
    most: int,
    size: int,
    window: int,
    scale: float,
) -> Tensor:
    heads = k.shape[2]
    rows = [fold(q, heads)]  # [B, H, G, T, K]
    gates = [None if x is None else fold(wide(x).unsqueeze(-1), heads) for x in given[:3]]
    choices = [None if x is None else fold(x if x.dim() == 4 else x.unsqueeze(-1), heads) for x in given[3:]]
    present = [x for x in (*gates, *choices) if x is not None]
    means, summaries = (_means(x.transpose(1, 2), size) for x in (k, v))  # [B, H, n, D]

    def body(span: Span, q: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        left = iter(rest)
        compressed, selected, latest, indices, counts = [None if x is None else next(left) for x in (*gates, *choices)]
        k, v = next(left), next(left)
        places = torch.arange(span.first, span.last, device=q.device)[:, None]
        whole = (torch.arange(means.shape[-2], device=q.device) + 1) * size <= places + 1  # [C, n]
        weights = _softmax(against(wide(q) * scale, means), ~whole)
        if indices is None:
            chosen = _choose(weights.mean(2).detach(), whole, places // size, most, counts)
        else:
            chosen = _marked(indices.squeeze(2), -(-span.last // size))
        scores, hidden = against(wide(q) * scale, wide(k)), span.hidden(q.device)
        skipped = ~chosen.repeat_interleave(size, -1)[..., : span.last].unsqueeze(2)
        o = weigh(_softmax(scores, hidden | skipped), wide(v))
        o = o if selected is None else o * selected
        if compressed is not None:
            o = o + weigh(weights, summaries) * compressed
        if latest is not None and window > 0:
            near = Span(span.first, span.last, span.start, window).hidden(q.device)
            o = o + weigh(_softmax(scores, near), wide(v)) * latest
        return (o,)

    keys = [x.transpose(1, 2) for x in (k, v)]
    return unfold(by_rows(body, [*rows, *present], keys)[0]).to(q.dtype)


def _means(x: Tensor, size: int) -> Tensor:
    """Means [B, H, n, D] of the blocks of ``x`` [B, H, S, D]; the last may be cut short, and is then never read."""
    rest = -x.shape[-2] % size
    return wide(pad(x, (0, 0, 0, rest))).unflatten(-2, (-1, size)).mean(-2)


def _softmax(scores: Tensor, hidden: Tensor) -> Tensor:
    """Weights of the keys that are not hidden, zero where all are."""
    return scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(hidden, 0)


def _choose(weights: Tensor, whole: Tensor, current: Tensor, most: int, counts: Tensor | None) -> Tensor:
    """Marks [B, H, C, n] of the chosen blocks, by their weights; ``counts`` [B, H, 1, C, 1] bounds each query's."""
    blocks = torch.arange(whole.shape[-1], device=whole.device)
    forced = (blocks == 0) | (blocks == current) | (blocks == current - 1)  # [C, n]
    worth = weights.masked_fill(forced, 2).masked_fill(~(whole | forced), -1)
    best, at = worth.topk(min(most, whole.shape[-1]), -1)
    kept = best >= 0
    if counts is not None:
        kept = kept & (torch.arange(at.shape[-1], device=at.device) < counts.squeeze(2))
    return torch.zeros_like(worth, dtype=torch.bool).scatter(-1, at, kept)


def _marked(indices: Tensor, blocks: int) -> Tensor:
    """Marks [B, H, C, n] of the blocks named by ``indices`` [B, H, C, N], those out of range left out."""
    inside = (indices >= 0) & (indices < blocks)
    marks = torch.zeros(*indices.shape[:-1], blocks, dtype=torch.int32, device=indices.device)
    return marks.scatter_add(-1, indices.clamp(0, blocks - 1).long(), inside.int()) > 0


def nsa_by_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_cmp: Tensor,
    g_slc: Tensor,
    g_swa: Tensor,
    block_counts: int,
    block_size: int,
    window_size: int,
) -> Tensor:
    """What ``parallel_nsa`` computes for one dense row, query by query and head by head."""
    rows, group, scale = [], q.shape[2] // k.shape[2], k.shape[-1] ** -0.5
    for place in range(q.shape[1]):
        heads = []
        whole, current = (place + 1) // block_size, place // block_size
        for head in range(k.shape[2]):
            own = slice(head * group, (head + 1) * group)
            x, keys, values = q[0, place, own] * scale, k[0, : place + 1, head], v[0, : place + 1, head]
            means, summaries = (
                y[: whole * block_size].unflatten(0, (whole, block_size)).mean(1) for y in (keys, values)
            )
            weights = (x @ means.mT).softmax(-1)
            worth = torch.cat([weights.mean(0), weights.new_zeros(current + 1 - whole)])
            worth[[0, max(current - 1, 0), current]] = 2
            blocks = worth.topk(min(block_counts, current + 1)).indices
            chosen = (torch.arange(place + 1)[:, None] // block_size == blocks).any(-1)
            o = g_slc[0, place, own, None] * ((x @ keys[chosen].mT).softmax(-1) @ values[chosen])
            o = o + g_cmp[0, place, own, None] * (weights @ summaries)
            near = (x @ keys[-window_size:].mT).softmax(-1) @ values[-window_size:]
            heads.append(o + g_swa[0, place, own, None] * near)
        rows.append(torch.cat(heads))
    return torch.stack(rows).unsqueeze(0)
