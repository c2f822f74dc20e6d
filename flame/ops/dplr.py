"""The delta rule with a free transition, diagonal plus low rank: RWKV-7 and fla's generalised delta rules.

    S_t = diag(exp(g_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T,    o_t = S_t^T q_t

``a`` reads the state before it decays. As in ``delta``, what the tokens of a chunk read of each other is a triangular
system; here the reads are written at ``b`` and the values at ``k``, so there are four kinds of scores instead of two
("RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv:2503.14456).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flame.ops.chunks import chunks_of
from flame.ops.decay import before, channel_scores, cumulative
from flame.ops.delta import (
    chunk_size,
    exponential,
    moderate,
    shifted,
    unit_lower_inverse,
    walk_states,
)
from flame.ops.delta_inputs import refuse_context
from flame.ops.precision import precision
from flame.ops.rows import exact, uncompiled
from flame.ops.states import documents_of, state_like


@uncompiled
def dplr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence over every document.

    Args:
        q, k, a, b: [B, T, H, K]; ``q`` already scaled.
        v: [B, T, H, V].
        g: [B, T, H, K] log decays; None for none.
        initial_state: [N, H, K, V]; None for zeros.
        cu_seqlens: [N + 1] borders of packed documents, of one row.

    Returns:
        Outputs [B, T, H, V] in the dtype of ``v`` and the final states [N, H, K, V] in float32 (float64 for float64).

    Raises:
        ValueError: ``cu_seqlens`` does not fit the tokens.
    """
    with exact(v):
        layout = chunks_of(v, cu_seqlens, chunk_size(v))
        state = state_like(initial_state, layout.documents, k, v)
        q, k, v, a, b = (layout.split(x.to(v.dtype)) for x in (q, k, v, a, b))
        chunk = _decayed(q, k, a, b, None if g is None else cumulative(layout.split(g)))
        inverse = unit_lower_inverse(-chunk.ab.to(precision(v))).to(v.dtype)
        read = inverse @ (chunk.ak @ v)  # what each token reads if the chunk begins with an empty state
        removed, added = -(inverse @ chunk.a), chunk.k.mT @ v
        states, read, final = walk_states(layout, read, removed, chunk.b, chunk.keep, state, added)
        return layout.join(chunk.q @ states.to(v.dtype) + chunk.qk @ v + chunk.qb @ read), final


class _Chunk(NamedTuple):
    """Rows with the decays since the chunk's beginning (``q``, ``a``) or until its end (``k``, ``b``) multiplied in."""

    q: Tensor
    k: Tensor
    a: Tensor
    b: Tensor
    qk: Tensor
    """[R, H, C, C] queries against keys, causal; ``qb`` likewise."""
    qb: Tensor
    ak: Tensor
    """[R, H, C, C] reads against earlier keys; ``ab`` likewise, meaningful below the diagonal only."""
    ab: Tensor
    keep: Tensor | None
    """[R, H, K, 1] what remains of a state after the chunk."""


def _decayed(q: Tensor, k: Tensor, a: Tensor, b: Tensor, g: Tensor | None) -> _Chunk:
    if g is None:
        return _Chunk(q, k, a, b, (q @ k.mT).tril(), (q @ b.mT).tril(), (a @ k.mT).tril(-1), a @ b.mT, None)
    keep = g[..., -1:, :].to(precision(q)).exp().mT
    since = exponential(g, q.dtype)
    q_since, a_since = q * since, a * shifted(since, 1.0)
    if moderate(g):
        whole, begin = keep.mT.to(q.dtype), exponential(-g, q.dtype)
        k, b = k * begin, b * begin
        return _Chunk(
            q_since, k * whole, a_since, b * whole,
            (q_since @ k.mT).tril(), (q_since @ b.mT).tril(), (a_since @ k.mT).tril(-1), a_since @ b.mT, keep,
        )  # fmt: skip
    until, both = exponential(g[..., -1:, :] - g, q.dtype), torch.stack([k, b])
    qk, qb = channel_scores(q, both, g).unbind(0)
    ak, ab = channel_scores(a, both, g, -1, before(g)).unbind(0)
    return _Chunk(q_since, k * until, a_since, b * until, qk, qb, ak, ab, keep)


def dplr_by_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``dplr`` token by token in the dtype given: what defines it."""
    outputs, states = [], []
    for index, (row, part) in enumerate(documents_of(v, cu_seqlens)):
        state = v.new_zeros(v.shape[2], k.shape[-1], v.shape[-1]) if initial_state is None else initial_state[index]
        for t in part:
            read = torch.einsum("hk,hkv->hv", a[row, t], state)
            decayed = state if g is None else state * g[row, t].exp().unsqueeze(-1)
            state = decayed + b[row, t].unsqueeze(-1) * read.unsqueeze(-2)
            state = state + k[row, t].unsqueeze(-1) * v[row, t].unsqueeze(-2)
            outputs.append(torch.einsum("hk,hkv->hv", q[row, t], state))
        states.append(state)
    return torch.stack(outputs).view_as(v), torch.stack(states)


def chunk_dplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    gk: Tensor | None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    safe_gate: bool = False,
    chunk_size: int | None = None,
    disable_recompute: bool = False,
    cp_context: Any = None,
    lower_bound: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """``dplr`` with fla's scale (default K^-0.5); the final states [N, H, K, V] come only if ``output_final_state``.

    ``safe_gate``, ``lower_bound``, ``chunk_size``, ``disable_recompute`` and ``cu_seqlens_cpu`` are hints.

    Raises:
        ValueError: borders or states that do not fit; ``cp_context``.
    """
    refuse_context(cp_context)
    documents = len(v) if cu_seqlens is None else len(cu_seqlens) - 1
    if initial_state is not None and len(initial_state) != documents:
        raise ValueError(f"initial_state has {len(initial_state)} states for {documents} documents; pass one for each")
    o, state = dplr(q * (k.shape[-1] ** -0.5 if scale is None else scale), k, v, a, b, gk, initial_state, cu_seqlens)
    return o, state if output_final_state else None


def fused_recurrent_dplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    gk: Tensor | None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_dplr_delta_rule``; ``reverse`` runs every document from its last token to its first."""
    if not reverse:
        return chunk_dplr_delta_rule(q, k, v, a, b, gk, scale, initial_state, output_final_state, cu_seqlens)
    q, k, v, a, b = (x.flip(1) for x in (q, k, v, a, b))
    gk = None if gk is None else gk.flip(1)
    if cu_seqlens is not None:  # the documents turn round with their tokens
        cu_seqlens = cu_seqlens[-1] - cu_seqlens.flip(0)
        initial_state = None if initial_state is None else initial_state.flip(0)
    o, state = chunk_dplr_delta_rule(q, k, v, a, b, gk, scale, initial_state, output_final_state, cu_seqlens)
    return o.flip(1), state if state is None or cu_seqlens is None else state.flip(0)


def chunk_iplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """``chunk_dplr_delta_rule`` without decay: identity plus low rank."""
    return chunk_dplr_delta_rule(q, k, v, a, b, None, scale, initial_state, output_final_state, cu_seqlens)


def fused_recurrent_iplr_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_iplr_delta_rule``."""
    return chunk_dplr_delta_rule(q, k, v, a, b, None, scale, initial_state, output_final_state, cu_seqlens)
