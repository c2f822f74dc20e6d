"""Softmax attention under the names and parameters of the flash-attn package, through PyTorch's own kernels.

Scores that PyTorch's fused kernels cover (causal or full) go to them whole; windows and caches of keys go block by
block, each with the mask of that block only. Packed documents are gathered into dense batches (``documents``).
"""

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention

from flame.ops.documents import Borders, alike, by_document, join
from flame.ops.rows import check_heads, scaling

BLOCK = 256
"""Queries that share a mask."""


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """Attention over dense rows.

    Fewer queries than keys are the last tokens of their row, as in decoding: query ``i`` stands at ``i + S - T``.

    Args:
        q: [B, T, HQ, K].
        k: [B, S, H, K]; ``HQ`` is a multiple of ``H``.
        v: [B, S, H, V].
        window_size: how many keys to the left and right of its own a query sees; -1 for all.
        deterministic: a hint for other kernels; no effect.

    Returns:
        [B, T, HQ, V]; zero for a query that sees no key.

    Raises:
        ValueError: heads that do not divide, or one of the parameters that have no counterpart here: ``dropout_p``,
            ``softcap``, ``alibi_slopes``, ``return_attn_probs``.
    """
    _refuse(dropout_p, softcap, alibi_slopes, return_attn_probs)
    check_heads(q.shape[2], k.shape[2])
    return attend(q, k, v, softmax_scale, *_reach(causal, window_size))


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """Attention over packed documents, each by itself.

    Args:
        q: [T, HQ, K]; ``k``: [S, H, K]; ``v``: [S, H, V].
        cu_seqlens_q, cu_seqlens_k: [N + 1] the borders of the documents among queries and keys. A document with fewer
            queries than keys has its last tokens as queries.
        max_seqlen_q, max_seqlen_k, deterministic: hints for other kernels; no effect on a CPU.
        others: as in ``flash_attn_func``.

    Returns:
        [T, HQ, V].

    Raises:
        ValueError: as ``flash_attn_func``; borders that do not cover the tokens; a ``block_table``.
    """
    _refuse(dropout_p, softcap, alibi_slopes, return_attn_probs)
    if block_table is not None:
        raise ValueError("block_table (a paged cache) is not supported; pass the keys and values themselves")
    check_heads(q.shape[1], k.shape[1])
    left, right = _reach(causal, window_size)
    same = cu_seqlens_q is cu_seqlens_k
    if same and right == 0 and _has_kernel(q, v):
        borders = cu_seqlens_q.int()
        longest = int(max_seqlen_q), int(max_seqlen_k)
        reach, grouped = (left, 0), q.shape[1] != k.shape[1]
        o = varlen_attn(q, k, v, borders, borders, *longest, scale=softmax_scale, window_size=reach, enable_gqa=grouped)
        assert isinstance(o, Tensor)
        return o
    if right == 0 and (same or torch.equal(cu_seqlens_q, cu_seqlens_k)):
        rows = [x.unsqueeze(0) for x in (q, k, v)]
        return by_document(lambda q, k, v: (attend(q, k, v, softmax_scale, left),), rows, cu_seqlens_q)[0][0]
    return _by_lengths(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, left, right)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    left: int = -1,
    right: int = 0,
    lengths: tuple[list[int], list[int]] | None = None,
) -> Tensor:
    """Softmax attention of queries [B, T, HQ, K] over keys [B, S, H, K] and values [B, S, H, V]: [B, T, HQ, V].

    Args:
        scale: of the scores; None for ``K ** -0.5``.
        left, right: how many keys beside its own a query sees on either side; -1 for all.
        lengths: how many queries and keys of each row are tokens, the rest padding; None for all.
    """
    factor = scaling(scale, k)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, T, D]
    count, length = q.shape[2], k.shape[2]
    left, right = (-1 if reach >= length else reach for reach in (left, right))
    if lengths is None and (count == 1 or (left < 0 and (right < 0 or (right == 0 and count == length)))):
        if count == 1:  # One query sees a slice of the cache, which needs no mask.
            last = length if right < 0 else min(length, length + right)
            seen = slice(0 if left < 0 else max(0, length - 1 - left), last)
            k, v = k[:, :, seen], v[:, :, seen]
        return _fused(q, k, v, factor, causal=right == 0 and count > 1).transpose(1, 2)
    return _masked(q, k, v, factor, left, right, lengths or ([count], [length])).transpose(1, 2)


def _masked(
    q: Tensor, k: Tensor, v: Tensor, scale: float, left: int, right: int, lengths: tuple[list[int], list[int]]
) -> Tensor:
    """Attention block by block of queries, each over the keys that any of its rows reaches."""
    shifts = [keys - queries for queries, keys in zip(*lengths, strict=True)]
    shift = torch.tensor(shifts, device=q.device)[:, None, None]  # [B or 1, 1, 1]
    ends = torch.tensor(lengths[1], device=q.device)[:, None, None]
    outputs = []
    for start in range(0, q.shape[2], BLOCK):
        stop = min(start + BLOCK, q.shape[2])
        low = 0 if left < 0 else max(0, start + min(shifts) - left)
        high = max(lengths[1]) if right < 0 else min(max(lengths[1]), stop + max(shifts) + right)
        if high <= low:
            outputs.append(q.new_zeros(*q.shape[:2], stop - start, v.shape[-1]))
            continue
        places = torch.arange(start, stop, device=q.device)[:, None] + shift  # [B or 1, C, 1]
        keys = torch.arange(low, high, device=q.device)
        seen = keys < ends
        if left >= 0:
            seen = seen & (keys >= places - left)
        if right >= 0:
            seen = seen & (keys <= places + right)
        seen = seen.expand(-1, stop - start, -1).unsqueeze(1)
        outputs.append(_fused(q[:, :, start:stop], k[:, :, low:high], v[:, :, low:high], scale, seen))
    return torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """PyTorch's attention over [B, H, T, D]; its kernels want values as wide as keys."""
    width, difference = v.shape[-1], k.shape[-1] - v.shape[-1]
    if difference > 0:
        v = pad(v, (0, difference))
    elif difference < 0:
        q, k = pad(q, (0, -difference)), pad(k, (0, -difference))
    grouped = q.shape[1] != k.shape[1]
    if grouped and mask is not None and q.is_cuda:  # There no fused kernel takes both.
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        grouped = False
    o = scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return o[..., :width]


def _by_lengths(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    scale: float | None,
    left: int,
    right: int,
) -> Tensor:
    """Packed documents whose queries are not all their tokens, or who look ahead."""
    queries, keys = Borders.of(cu_seqlens_q, len(q)), Borders.of(cu_seqlens_k, len(k))
    results, batches = [], []
    for documents in alike(keys.lengths):
        for group in _with_queries(documents, queries.lengths):
            own, theirs = queries.batch(group, q.device), keys.batch(group, k.device)
            lengths = [queries.lengths[document] for document in group], [keys.lengths[document] for document in group]
            results.append(attend(own.take(q), theirs.take(k), theirs.take(v), scale, left, right, lengths))
            batches.append(own)
    if not results:
        return q.new_zeros(*q.shape[:2], v.shape[-1])
    return join(results, batches, len(q))


def _with_queries(documents: list[int], lengths: list[int]) -> list[list[int]]:
    groups = alike([lengths[document] for document in documents])
    return [[documents[index] for index in group] for group in groups]


def _reach(causal: bool, window_size: tuple[int, int]) -> tuple[int, int]:
    left, right = window_size
    return left, 0 if causal else right


def _has_kernel(q: Tensor, v: Tensor) -> bool:
    """True where PyTorch has a kernel for packed documents."""
    return q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] == v.shape[-1] <= 256


def _refuse(dropout_p: float, softcap: float, alibi_slopes: Tensor | None, return_attn_probs: bool) -> None:
    given = {
        "dropout_p": dropout_p,
        "softcap": softcap,
        "alibi_slopes": alibi_slopes is not None,
        "return_attn_probs": return_attn_probs,
    }
    for name, value in given.items():
        if value:
            raise ValueError(f"{name}={value} is not supported without the flash-attn package; leave it at its default")


def attention_by_token(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, left: int = -1, right: int = 0
) -> Tensor:
    """What ``attend`` computes, query by query in float64: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762."""
    factor = scaling(scale, k)
    group, shift = q.shape[2] // k.shape[2], k.shape[1] - q.shape[1]
    queries, keys, values = q.double(), k.double().repeat_interleave(group, 2), v.double().repeat_interleave(group, 2)
    rows = []
    for place in range(q.shape[1]):
        own = place + shift
        seen = slice(0 if left < 0 else max(0, own - left), None if right < 0 else max(0, own + right + 1))
        if keys[:, seen].shape[1] == 0:
            rows.append(values.new_zeros(q.shape[0], q.shape[2], v.shape[-1]))
            continue
        weights = (torch.einsum("bhd,bshd->bhs", queries[:, place], keys[:, seen]) * factor).softmax(-1)
        rows.append(torch.einsum("bhs,bshd->bhd", weights, values[:, seen]))
    return torch.stack(rows, 1)
