"""fla's entry points for gated linear attention, each in terms of ``gated_linear_attention``.

Argument names, order and defaults are fla's. Hints for its kernels (``cu_seqlens_cpu``, ``checkpoint_level``,
``chunk_size`` ...) change no number and are not read.
"""

from typing import Any

import torch
from torch import Tensor

from flame.ops.gated_linear import gated_linear_attention
from flame.ops.states import check_options, forward_only, layout_asked, value_first


def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """GLA with log decays ``g`` [B, T, H, K] per key channel."""
    o, state = gated_linear_attention(
        q, k, v, g, scale=scale, state=value_first(initial_state, state_v_first), cu_seqlens=cu_seqlens
    )
    return o, value_first(state, state_v_first) if output_final_state else None


def fused_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """GLA with log decays per key (``gk``) or per value channel (``gv``)."""
    check_options(kwargs, "transpose_state_layout")
    forward_only(reverse)
    state_v_first = layout_asked(state_v_first, kwargs)
    o, state = gated_linear_attention(
        q, k, v, gk, gv=gv, scale=scale, state=value_first(initial_state, state_v_first), cu_seqlens=cu_seqlens
    )
    return o, value_first(state, state_v_first) if output_final_state else None


def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Linear attention with log decays ``g`` [B, T, H] per head, and constant ones ``g_gamma`` [H] (RetNet,
    Lightning).
    """
    check_options(kwargs)
    heads = v.shape[2]
    if q.shape[2] != heads:  # grouped queries and keys
        q, k = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (q, k))
    state = value_first(initial_state, state_v_first)
    decay = _per_head(q, g, g_gamma)
    o, state = gated_linear_attention(q, k, v, decay, scale=scale, state=state, cu_seqlens=cu_seqlens)
    return o, value_first(state, state_v_first) if output_final_state else None


def fused_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_simple_gla``; ``reverse`` is refused."""
    check_options(kwargs, "transpose_state_layout")
    forward_only(reverse)
    state_v_first = layout_asked(state_v_first, kwargs)
    return chunk_simple_gla(
        q, k, v, g, g_gamma, scale, initial_state, output_final_state, state_v_first, cu_seqlens=cu_seqlens
    )


def fused_chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_simple_gla``."""
    return chunk_simple_gla(q, k, v, g, g_gamma, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens)


def parallel_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_simple_gla`` without states.

    Raises:
        ValueError: the [T, T] scores are asked for.
    """
    if output_attentions:
        raise ValueError(
            "output_attentions=True needs the [T, T] scores, which chunked attention never forms; leave it off"
        )
    return chunk_simple_gla(q, k, v, g, scale=scale, cu_seqlens=cu_seqlens)[0], None


def chunk_rwkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """RWKV6 (Peng et al., arXiv:2404.05892): the own token is read with weight ``u`` [H, K] before it enters the
    state.
    """
    check_options(kwargs)
    o, state = gated_linear_attention(r, k, v, w, bonus=u, scale=scale, state=initial_state, cu_seqlens=cu_seqlens)
    return o, state if output_final_state else None


def fused_recurrent_rwkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_rwkv6``; ``reverse`` is refused."""
    forward_only(reverse)
    return chunk_rwkv6(r, k, v, w, u, scale, initial_state, output_final_state, cu_seqlens)


def _per_head(q: Tensor, g: Tensor | None, g_gamma: Tensor | None) -> Tensor | None:
    """The log decays [B, T, H, 1] of each token, from those of tokens [B, T, H] and of heads [H]."""
    decay = None if g is None else g.unsqueeze(-1)
    if g_gamma is not None:
        constant = g_gamma.to(torch.float32).view(1, 1, -1, 1).expand(*q.shape[:3], 1)
        decay = constant if decay is None else decay + constant
    return decay
