"""Mixture of block attention: Lu et al. 2025, https://arxiv.org/abs/2502.13189.

The choice of chunks only masks here, so the cost is that of full attention, in the memory of one block of queries.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from flame.ops.attention import attend
from flame.ops.documents import by_document
from flame.ops.precision import wide
from flame.ops.rows import Span, against, by_rows, check_heads, fold, unfold


def parallel_moba(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, chunk_size: int, topk: int
) -> Tensor:
    """Attention over a query's own chunk and the earlier ones it meets best.

    A query sees its own chunk up to itself, and the ``topk - 1`` earlier chunks whose mean key it meets best; with a
    ``topk`` of 1 it sees everything before it, as in fla.

    Args:
        q: [1, T, HQ, K].
        k: [1, T, H, K]; ``HQ`` is a multiple of ``H``.
        v: [1, T, H, V].
        cu_seqlens: [N + 1] the borders of the documents.
        max_seqlen: a hint for other kernels; no effect.
        chunk_size: keys per chunk, counted from each document's start.
        topk: how many chunks a query sees, its own included.

    Returns:
        [1, T, HQ, V] in the dtype of ``q``.

    Raises:
        ValueError: heads that do not divide, or borders that do not cover one row.
    """
    check_heads(q.shape[2], k.shape[2])

    def dense(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        if topk <= 1 or q.shape[1] <= chunk_size:
            return (attend(q, k, v),)
        return (_mixture(q, k, v, chunk_size, topk - 1),)

    return by_document(dense, (q, k, v), cu_seqlens)[0]


def _mixture(q: Tensor, k: Tensor, v: Tensor, size: int, most: int) -> Tensor:
    heads = k.shape[2]
    chunks = k.shape[1] // size
    # Chosen as fla does: means in the dtype of the keys, scores in float32.
    means = wide(k.detach()[:, : chunks * size].unflatten(1, (chunks, size)).mean(2)).transpose(1, 2)  # [B, H, n, K]

    def body(span: Span, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        places = torch.arange(span.first, span.last, device=q.device)[:, None]
        ended = (torch.arange(chunks, device=q.device) + 1) * size <= places  # [C, n]
        worth = against(wide(q.detach()), means).masked_fill(~ended, -torch.inf)
        best, at = worth.topk(min(most, chunks), -1)
        chosen = torch.zeros_like(worth, dtype=torch.bool).scatter(-1, at, best > -torch.inf)
        keys = torch.arange(span.last, device=q.device)
        seen = pad(chosen, (0, 1)).repeat_interleave(size, -1)[..., : span.last]
        seen = seen | ((keys // size == places // size) & (keys <= places))  # [B, H, G, C, S]
        rows = [x.unsqueeze(2).expand(-1, -1, q.shape[2], -1, -1).flatten(1, 2) for x in (k, v)]
        o = scaled_dot_product_attention(q.flatten(1, 2), *rows, attn_mask=seen.flatten(1, 2))
        return (o.unflatten(1, q.shape[1:3]),)

    return unfold(by_rows(body, [fold(q, heads)], [x.transpose(1, 2) for x in (k, v)])[0]).to(q.dtype)


def moba_by_token(q: Tensor, k: Tensor, v: Tensor, chunk_size: int, topk: int) -> Tensor:
    """What ``parallel_moba`` computes for one dense row and a ``topk`` above 1, query by query and head by head."""
    rows, group = [], q.shape[2] // k.shape[2]
    for place in range(q.shape[1]):
        current, heads = place // chunk_size, []
        for head in range(q.shape[2]):
            x, keys, values = q[0, place, head], k[0, : place + 1, head // group], v[0, : place + 1, head // group]
            means = keys[: current * chunk_size].unflatten(0, (current, chunk_size)).mean(1)
            chunks = [current, *(means @ x).topk(min(topk - 1, current)).indices.tolist()]
            chosen = (torch.arange(place + 1)[:, None] // chunk_size == torch.tensor(chunks)).any(-1)
            heads.append((keys[chosen] @ x * q.shape[-1] ** -0.5).softmax(-1) @ values[chosen])
        rows.append(torch.stack(heads))
    return torch.stack(rows).unsqueeze(0)
