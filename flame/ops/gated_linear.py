"""Gated linear attention: ``S_t = diag(exp g_t) S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t`` (Yang et al.,
arXiv:2312.06635).

With a decay per key channel (GLA, HGRN2, RWKV6), per head (simple GLA, RetNet, Lightning, Mamba2), per value channel
(the first pass of GSA and ABC) or none (linear attention).
"""

import torch
from torch import Tensor

from flame.ops.chunks import CHUNK, Chunks, chunks_of
from flame.ops.decay import before, channel_mix, channel_scores, cumulative, head_scores, lower, scaled
from flame.ops.states import documents_of, state_like


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    gv: Tensor | None = None,
    bonus: Tensor | None = None,
    scale: float | None = None,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    size: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Gated linear attention in chunks.

    Args:
        q, k: [B, T, H, K].
        v: [B, T, H, V].
        g: log decays, [B, T, H, K] per key channel or [B, T, H, 1] per head; None for none.
        gv: log decays [B, T, H, V] per value channel instead.
        bonus: [H, K] the weight of the own token, which is then read before it enters the state and not decayed
            (RWKV6).
        scale: of the queries; 1 / sqrt(K) by default.
        state: [N, H, K, V] the documents' initial states; zero by default.
        cu_seqlens: [N + 1] the borders of packed documents, for B = 1.
        size: tokens per chunk.

    Returns:
        The outputs [B, T, H, V] in the dtype of ``v`` and the final states [N, H, K, V] in float32 (float64 for
        float64).
    """
    chunks = chunks_of(q, cu_seqlens, size)
    state = state_like(state, chunks.documents, k, v)
    q, k, v = chunks.split(q * (q.shape[-1] ** -0.5 if scale is None else scale)), chunks.split(k), chunks.split(v)
    if gv is not None:
        if g is not None or bonus is not None:
            raise ValueError(
                "gated linear attention decays by key or by value channel, not by both; give one of g and gv"
            )
        output, state = _by_value(chunks, q, k, v, chunks.split(gv), state)
    else:
        output, state = _by_key(chunks, q, k, v, None if g is None else chunks.split(g), bonus, state)
    return chunks.join(output), state


def _by_key(
    chunks: Chunks, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, bonus: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    diagonal = 0 if bonus is None else -1
    if g is None:
        scores = (q @ k.mT).masked_fill(~lower(q.shape[-2], diagonal, q.device), 0)
        past, kept, decay = q, k, torch.ones((), dtype=state.dtype, device=q.device).expand(len(q), 1, 1, 1)
    else:
        g = cumulative(g)
        last = g[..., -1:, :]  # [R, H, 1, K]
        g_q = g if bonus is None else before(g)
        per_head = g.shape[-1] == 1 and bonus is None
        scores = head_scores(q, k, g) if per_head else channel_scores(q, k, g, diagonal, g_q)
        past, kept, decay = scaled(q, g_q), scaled(k, last - g), last.mT.to(state.dtype).exp()
    if bonus is not None:
        scores = scores + torch.diag_embed((q * k * bonus[:, None].to(q.dtype)).sum(-1))
    states, state = chunks.carry(decay, (kept.mT @ v).to(state.dtype), state)
    return scores @ v + past @ states.to(q.dtype), state


def _by_value(chunks: Chunks, q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    g = cumulative(g)
    last = g[..., -1:, :]  # [R, H, 1, V]
    scores = (q @ k.mT).masked_fill(~lower(q.shape[-2], 0, q.device), 0)
    update = k.mT @ scaled(v, last - g)
    states, state = chunks.carry(last.to(state.dtype).exp(), update.to(state.dtype), state)
    return channel_mix(scores, v, g) + scaled(q @ states.to(q.dtype), g), state


def gated_linear_attention_by_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    gv: Tensor | None = None,
    bonus: Tensor | None = None,
    scale: float | None = None,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence that ``gated_linear_attention`` computes, one token at a time."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    documents = documents_of(q, cu_seqlens)
    initial = state_like(state, len(documents), k, v)
    outputs, finals = [], []
    for (row, tokens), s in zip(documents, initial, strict=True):
        for t in range(tokens.start, tokens.stop):
            update = k[row, t].unsqueeze(-1).to(s.dtype) * v[row, t].unsqueeze(-2)  # [H, K, V]
            decayed = s
            if g is not None:
                decayed = s * g[row, t].to(s.dtype).exp().unsqueeze(-1)
            if gv is not None:
                decayed = decayed * gv[row, t].to(s.dtype).exp().unsqueeze(-2)
            read = decayed + update if bonus is None else s + bonus.unsqueeze(-1) * update
            outputs.append(torch.einsum("hk,hkv->hv", q[row, t].to(s.dtype) * factor, read))
            s = decayed + update
        finals.append(s)
    return torch.stack(outputs).view(v.shape).to(v.dtype), torch.stack(finals)
