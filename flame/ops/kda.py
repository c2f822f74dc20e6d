"""fla's entry points of the delta rules with one decay per channel: KDA and Gated DeltaNet 2.

Shapes as in ``delta_entries``, with ``g`` [B, T, HV, K]. ``safe_gate``, ``disable_recompute``, ``use_graph``,
``max_num_seqs``, ``cu_seqlens_cpu`` and ``chunk_size`` are hints for the kernels, accepted and not read.
"""

from typing import Any

import torch
from torch import Tensor

from flame.ops.delta_inputs import (
    forget_gate,
    refuse_context,
    refuse_states,
    run,
    run_by_channel,
    share_heads,
    unit_length,
    write_strength,
)
from flame.ops.states import check_options, layout_asked


def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    cp_context: Any = None,
    use_graph: bool = False,
    max_num_seqs: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The delta rule on a state whose channels decay by exp(g_t) first ("Kimi Linear", arXiv:2510.26692).

    ``A_log`` [HV] and ``dt_bias`` [HV * K] come among ``kwargs``, as in fla.

    Raises:
        ValueError: borders, heads or states that do not fit; ``cp_context``; ``return_intermediate_states``;
            ``allow_neg_eigval`` without the sigmoid; ``use_gate_in_kernel`` with neither ``A_log`` nor ``lower_bound``.
    """
    check_options(kwargs, "A_log", "dt_bias", "transpose_state_layout")
    refuse_context(cp_context)
    refuse_states(return_intermediate_states)
    return fused_recurrent_kda(
        q, k, v, g, beta, kwargs.get("A_log"), kwargs.get("dt_bias"), scale, initial_state, output_final_state,
        use_qk_l2norm_in_kernel, use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, lower_bound,
        layout_asked(state_v_first, kwargs), cu_seqlens,
    )  # fmt: skip


def fused_recurrent_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_kda``; ``beta`` may also be [B, T, HV, V]."""
    check_options(kwargs, "transpose_state_layout")
    if use_qk_l2norm_in_kernel:
        q, k = unit_length(q), unit_length(k)
    if use_gate_in_kernel:
        g = forget_gate(g, A_log, dt_bias, lower_bound)
    beta = write_strength(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval).to(v.dtype)
    layout = {"scale": scale, "initial_state": initial_state, "output_final_state": output_final_state,
              "cu_seqlens": cu_seqlens, "state_v_first": layout_asked(state_v_first, kwargs)}  # fmt: skip
    if beta.dim() == v.dim():
        return run_by_channel(q, k, v, beta, g, None, k, **layout)
    beta = beta.unsqueeze(-1)
    return run(q, k, v * beta, share_heads(k, v.shape[2]) * beta, g, **layout)


def fused_kda_gate(
    g: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    lower_bound: float | None = None,
    output_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Log decays [..., H, K] of raw gates: -exp(A_log) softplus(g + dt_bias), or bounded below by ``lower_bound``.

    Raises:
        ValueError: neither ``A_log`` nor ``lower_bound``.
    """
    return forget_gate(g, A_log, dt_bias, lower_bound).to(output_dtype)


def chunk_gdn2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cp_context: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """S_t = (I - k_t (b_t k_t)^T) diag(exp(g_t)) S_{t-1} + k_t (w_t v_t)^T: erasing and writing gated per channel.

    ``b`` [B, T, H, K], ``w`` [B, T, H, V]; ``A_log`` [H] and ``dt_bias`` [H * K] among ``kwargs``.

    Raises:
        ValueError: as ``chunk_kda``.
    """
    check_options(kwargs, "A_log", "dt_bias", "transpose_state_layout")
    refuse_context(cp_context)
    refuse_states(return_intermediate_states)
    return fused_recurrent_gdn2(
        q, k, v, g, b, w, kwargs.get("A_log"), kwargs.get("dt_bias"), scale, initial_state, output_final_state,
        use_qk_l2norm_in_kernel, use_gate_in_kernel, lower_bound, layout_asked(state_v_first, kwargs), cu_seqlens,
    )  # fmt: skip


def fused_recurrent_gdn2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_gdn2``."""
    check_options(kwargs, "transpose_state_layout")
    if use_qk_l2norm_in_kernel:
        q, k = unit_length(q), unit_length(k)
    if use_gate_in_kernel:
        g = forget_gate(g, A_log, dt_bias, lower_bound)
    erase = share_heads(k, v.shape[2]) * b.to(k.dtype)
    return run(
        q, k, v * w.to(v.dtype), erase, g, scale=scale, initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens, state_v_first=layout_asked(state_v_first, kwargs),
    )  # fmt: skip
