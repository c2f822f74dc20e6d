"""fla's entry points of the delta rules whose written keys are preconditioned by the keys' own second moments.

A diagonal state A_t = exp(g_atk) A_{t-1} + beta_atk k_t^2 measures how often each channel was written. The key that is
written is k_t x^{-s_t}, s_t = r / (1 + |r|), r = log(A_t + eps) - log_atk_scale: channels written often are damped, by
a factor between 1 / x and x. The key that is read stays k_t. Shapes as in ``delta_entries``; ``g_atk`` and ``beta_atk``
[B, T, H], ``log_atk_scale`` [H], default -0.2, and ``initial_A_state`` [N, H, K].
"""

from typing import Any

import torch
from torch import Tensor

from flame.ops.chunks import chunks_of
from flame.ops.decay import cumulative, decay_mask
from flame.ops.delta import chunk_size
from flame.ops.delta_inputs import (
    forget_gate,
    refuse_context,
    refuse_states,
    run,
    run_by_channel,
    share_heads,
    unit_length,
)
from flame.ops.precision import precision
from flame.ops.rows import exact, uncompiled
from flame.ops.states import check_options, documents_of

LOG_SCALE = -0.2


@uncompiled
def second_moments(
    k: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A_t = exp(g_t) A_{t-1} + beta_t k_t^2 of keys [B, T, H, K], decays and weights [B, T, H].

    Returns:
        All A_t [B, T, H, K] and the last ones [N, H, K], in float32 (float64 for float64).
    """
    layout, dtype = chunks_of(k, cu_seqlens, chunk_size(k)), precision(k)
    squares = layout.split(k.to(dtype).square() * beta.to(dtype).unsqueeze(-1))
    sums = cumulative(layout.split(g.unsqueeze(-1)))  # [R, H, C, 1]
    with exact(k):
        inside = decay_mask(sums).to(dtype) @ squares
    if initial_state is None:
        state = squares.new_zeros(layout.documents, k.shape[2], 1, k.shape[-1])
    else:
        state = initial_state.to(dtype).unsqueeze(-2)
    since = sums.to(dtype).exp()
    before, final = layout.carry(since[..., -1:, :], inside[..., -1:, :], state)
    return layout.join(inside + since * before), final.squeeze(-2)


def second_moments_by_token(
    k: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``second_moments`` token by token: what defines it."""
    moments, states = [], []
    for index, (row, part) in enumerate(documents_of(k, cu_seqlens)):
        state = k.new_zeros(k.shape[2:]) if initial_state is None else initial_state[index]
        for t in part:
            state = g[row, t].exp().unsqueeze(-1) * state + beta[row, t].unsqueeze(-1) * k[row, t].square()
            moments.append(state)
        states.append(state)
    return torch.stack(moments).view_as(k), torch.stack(states)


def damp(k: Tensor, moments: Tensor, x: float, eps: float, log_atk_scale: Tensor | float | None) -> Tensor:
    """The keys that are written: ``k`` [B, T, H, K] times x^{-s} of its second moments."""
    center = LOG_SCALE if log_atk_scale is None else log_atk_scale
    if isinstance(center, Tensor):
        center = center.to(moments.dtype).view(-1, 1)
    r = (moments + eps).log() - center
    return k * torch.pow(x, -r / (1 + r.abs())).to(k.dtype)


def chunk_precond_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_atk: Tensor,
    g: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    cp_context: Any = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gated delta rule with preconditioned keys; returns outputs, final states and final second moments.

    Raises:
        ValueError: borders, heads or states that do not fit; ``cp_context``.
    """
    refuse_context(cp_context)
    return fused_recurrent_precond_gated_delta_rule(
        q, k, v, g, None, None, beta, g_atk, beta_atk, scale, initial_state, initial_A_state, output_final_state,
        use_qk_l2norm_in_kernel, cu_seqlens, transpose_state_layout, x, eps, log_atk_scale,
    )  # fmt: skip


def fused_recurrent_precond_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    g_atk: Tensor | None = None,
    beta_atk: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
    cu_seqlens: Tensor | None = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As ``chunk_precond_gated_delta_rule``, with further decays ``gk`` [B, T, HV, K] and ``gv`` [B, T, HV, V].

    ``g`` may be None; ``beta`` may be [B, T, HV, V], or None for ones.

    Raises:
        ValueError: also without ``g_atk`` or ``beta_atk``.
    """
    if g_atk is None or beta_atk is None:
        raise ValueError("the preconditioner needs g_atk and beta_atk (got None)")
    if use_qk_l2norm_in_kernel:
        q, k = unit_length(q), unit_length(k)
    moments, last = second_moments(k, g_atk, beta_atk, initial_A_state, cu_seqlens)
    write = damp(k, moments, x, eps, log_atk_scale)
    beta = (v.new_ones(v.shape[:3]) if beta is None else beta).to(v.dtype)
    g = None if g is None else g.unsqueeze(-1)
    if gk is not None:
        g = gk if g is None else g + gk
    o, state = _write(q, k, write, v, beta, g, gv, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
                      output_final_state=output_final_state, state_v_first=transpose_state_layout)  # fmt: skip
    return o, state, last if output_final_state else None


def chunk_precond_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    g_atk: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    use_gate_in_kernel: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: Any = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | None = None,
    solve_tril_precision: str | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """KDA with preconditioned keys; queries and keys are always normalised, as in fla.

    ``safe_gate``, ``chunk_indices``, ``solve_tril_precision``, ``disable_recompute`` and ``cu_seqlens_cpu`` are hints.

    Raises:
        ValueError: borders, heads or states that do not fit; ``cp_context``; ``return_intermediate_states``;
            ``use_gate_in_kernel`` with neither ``A_log`` (among ``kwargs``) nor ``lower_bound``.
    """
    check_options(kwargs, "A_log", "dt_bias", "use_qk_l2norm_in_kernel")
    refuse_context(cp_context)
    refuse_states(return_intermediate_states)
    return fused_recurrent_precond_kda(
        q, k, v, g, g_atk, beta_atk, beta, kwargs.get("A_log"), kwargs.get("dt_bias"), scale, initial_state,
        initial_A_state, output_final_state, True, use_gate_in_kernel, lower_bound, cu_seqlens, transpose_state_layout,
        x, eps, log_atk_scale,
    )  # fmt: skip


def fused_recurrent_precond_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    g_atk: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    initial_A_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    cu_seqlens: Tensor | None = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As ``chunk_precond_kda``, normalising only if asked; ``beta`` may be [B, T, HV, V]."""
    check_options(kwargs)
    if use_qk_l2norm_in_kernel:
        q, k = unit_length(q), unit_length(k)
    if use_gate_in_kernel:
        g = forget_gate(g, A_log, dt_bias, lower_bound)
    k = share_heads(k, g_atk.shape[2])  # the preconditioner belongs to the value heads here
    moments, last = second_moments(k, g_atk, beta_atk, initial_A_state, cu_seqlens)
    write = damp(k, moments, x, eps, log_atk_scale)
    o, state = _write(q, k, write, v, beta.to(v.dtype), g, None, scale=scale, initial_state=initial_state,
                      cu_seqlens=cu_seqlens, output_final_state=output_final_state,
                      state_v_first=transpose_state_layout)  # fmt: skip
    return o, state, last if output_final_state else None


def _write(
    q: Tensor, k: Tensor, write: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, gv: Tensor | None, **layout: Any
) -> tuple[Tensor, Tensor | None]:
    """The delta rule that reads ``k`` and writes ``write``, with ``beta`` and decays per head or per channel."""
    if gv is None and beta.dim() < v.dim():
        beta = beta.unsqueeze(-1)
        return run(q, write, v * beta, share_heads(k, v.shape[2]) * beta, g, **layout)
    beta = beta if beta.dim() == v.dim() else beta.unsqueeze(-1)
    return run_by_channel(q, write, v, beta, g, gv, k, **layout)
