"""Attention to a bounded number of slots: GSA (Zhang et al., arXiv:2409.07146), ABC (Peng et al., arXiv:2110.02488)
and the additive gate they share with LightNet (arXiv:2405.21022).

Two passes of gated linear attention with a softmax over the slots between them: the first reads keys out of the slots,
the second values.
"""

from typing import Any

import torch
from torch import Tensor

from flame.ops.chunks import chunks_of
from flame.ops.gated_linear import gated_linear_attention
from flame.ops.states import check_options, forward_only

States = tuple[Tensor | None, Tensor | None]


def slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    g: Tensor,
    scale: float | None = None,
    states: States | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Gated slot attention.

    Args:
        q: [B, T, HQ, K]; ``HQ`` is a multiple of ``H``.
        k: [B, T, H, K].
        v: [B, T, H, V].
        s: [B, T, H, M] how much each token writes to each slot.
        g: [B, T, H, M] the slots' log decays.
        scale: of the queries; 1 / sqrt(K) by default.
        states: [N, H, K, M] and [N, H, M, V].
        cu_seqlens: [N + 1] the borders of packed documents.

    Returns:
        [B, T, HQ, V] and the final states in the layout of ``states``.
    """
    keys, values = (None, None) if states is None else states
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        k, v, s, g = (x.repeat_interleave(groups, dim=2) for x in (k, v, s, g))
        keys, values = (x if x is None else x.repeat_interleave(groups, dim=1) for x in (keys, values))
    read, keys = gated_linear_attention(q, k, s, gv=g, scale=scale, state=keys, cu_seqlens=cu_seqlens)
    weights = read.softmax(-1, dtype=torch.promote_types(read.dtype, torch.float32)).to(q.dtype)
    o, values = gated_linear_attention(weights, s, v, g, scale=1.0, state=values, cu_seqlens=cu_seqlens)
    return o, (keys[:, ::groups], values[:, ::groups])


def additive_gate(
    x: Tensor, state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights that add up to the softmax over all tokens so far: ``exp(x_t - z_t)`` with ``z`` the running
    log-sum-exp of ``x``.

    Args:
        x: [B, T, H, K] logits.
        state: [N, 1, H, K] the log-sum-exp of what came before.
        cu_seqlens: [N + 1] the borders of packed documents.

    Returns:
        The weights [B, T, H, K], the log decays ``z_{t-1} - z_t`` (zero for the very first token) and the last ``z``
        [N, 1, H, K].
    """
    chunks = chunks_of(x, cu_seqlens)
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows = chunks.split(x.to(dtype))  # [R, H, C, K]
    if chunks.padding is not None:
        rows = rows.masked_fill(chunks.padding[:, None, :, None], -torch.inf)
    elif chunks.gather is None and chunks.size * len(chunks.steps) > chunks.length:
        real = torch.arange(len(chunks.steps) * chunks.size, device=x.device).view(-1, chunks.size) < chunks.length
        rows = rows.masked_fill(~real.repeat_interleave(chunks.batch, 0)[:, None, :, None], -torch.inf)
    inside = rows.logcumsumexp(-2)
    shape = (chunks.documents, x.shape[2], 1, x.shape[3])
    # A finite floor in place of -inf: log-add-exp of two infinities has no gradient.
    floor = torch.finfo(dtype).min / 2
    initial = x.new_full(shape, floor, dtype=dtype) if state is None else state.to(dtype).transpose(1, 2)

    def step(z: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        return z, torch.logaddexp(z, inside[at][..., -1:, :])

    past, last = chunks.walk(initial, step)
    z = torch.logaddexp(past, inside)
    previous = torch.cat([past, z[..., :-1, :]], -2)
    gate = torch.where(previous <= floor, torch.zeros_like(z), previous - z)
    z, gate = chunks.join(z), chunks.join(gate)
    return (x.to(dtype) - z).exp(), gate, last.transpose(1, 2)


def fused_additive_gate(
    x: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    gate_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """fla's entry point of ``additive_gate``."""
    weights, gate, last = additive_gate(x, initial_state, cu_seqlens)
    return weights.to(output_dtype or x.dtype), gate.to(gate_dtype or x.dtype), last


def chunk_gsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    initial_state: States | None = None,
    output_final_state: bool = False,
    checkpoint_level: int = 2,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, list[Tensor | None]]:
    """fla's entry point of ``slot_attention``; without ``g`` the slots are normalised as in ABC."""
    check_options(kwargs)
    if g is None:
        s, g, _ = additive_gate(s, cu_seqlens=cu_seqlens)
        s = s.to(k.dtype)
    o, states = slot_attention(q, k, v, s, g, scale, initial_state, cu_seqlens)
    return o, list(states) if output_final_state else [None, None]


def fused_recurrent_gsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    initial_state: States | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """As ``chunk_gsa``; ``reverse`` is refused."""
    forward_only(reverse)
    return chunk_gsa(q, k, v, s, g, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens)


def chunk_abc(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    initial_state: tuple[Tensor, ...] | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """ABC: slots normalised over all tokens so far.

    The final state carries the normaliser [N, 1, H, M] as a third tensor, which fla's lacks: without it (a state of
    two) a continued sequence takes the first new token for as heavy as all before it.
    """
    *states, z = (None, None, None) if initial_state is None else (*initial_state, None)[:3]
    s, g, z = additive_gate(s, z)
    o, (keys, values) = slot_attention(q, k, v, s.to(k.dtype), g, None, (states[0], states[1]))
    return o, (keys, values, z) if output_final_state else None
