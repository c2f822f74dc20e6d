"""fla's entry points of the delta rules with at most one decay per head.

All compute in chunks, also those fla calls recurrent, and all differentiate. Queries and keys are [B, T, H, K], values
[B, T, HV, V] with HV a multiple of H, ``beta`` and ``g`` (natural log decays) [B, T, HV], ``initial_state`` one
[N, HV, K, V] per document, ``cu_seqlens`` [N + 1] the borders of the documents of one row. Outputs are [B, T, HV, V],
and the final states [N, HV, K, V] in float32, or None unless ``output_final_state``. ``cu_seqlens_cpu``,
``chunk_indices`` and ``chunk_size`` are hints for the kernels, accepted and not read.
"""

from typing import Any

import torch
from torch import Tensor

from flame.ops.delta_inputs import (
    forget_gate,
    refuse_context,
    run,
    run_by_channel,
    share_heads,
    unit_length,
    write_strength,
)
from flame.ops.states import check_options, layout_asked


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t) ("DeltaNet", arXiv:2406.06484).

    Raises:
        ValueError: borders, heads or states that do not fit.
    """
    check_options(kwargs)
    return fused_recurrent_delta_rule(
        q, k, v, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens
    )


def fused_recurrent_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_delta_rule``; ``beta`` may also be [B, T, HV, V], or None for ones."""
    return fused_recurrent_gated_delta_rule(
        q, k, v, beta=beta, scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The delta rule on a state that decays by exp(g_t) first ("Gated Delta Networks", arXiv:2412.06464).

    ``use_gate_in_kernel``, ``A_log`` and ``dt_bias`` come among ``kwargs``, as in fla.

    Raises:
        ValueError: borders, heads or states that do not fit; ``cp_context``; ``allow_neg_eigval`` without the sigmoid;
            ``use_gate_in_kernel`` without ``A_log``.
    """
    check_options(kwargs, "A_log", "dt_bias", "use_gate_in_kernel", "transpose_state_layout")
    refuse_context(cp_context)
    gate = {name: kwargs.get(name) for name in ("A_log", "dt_bias")}
    return fused_recurrent_gated_delta_rule(
        q, k, v, g, beta=beta, scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, use_gate_in_kernel=kwargs.get("use_gate_in_kernel", False),
        use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel, allow_neg_eigval=allow_neg_eigval,
        state_v_first=layout_asked(state_v_first, kwargs), cu_seqlens=cu_seqlens, **gate,
    )  # fmt: skip


def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_gated_delta_rule``, with further decays ``gk`` [B, T, HV, K] and ``gv`` [B, T, HV, V] of the state.

    ``g`` may be None; ``beta`` may be [B, T, HV, V], or None for ones.
    """
    check_options(kwargs, "transpose_state_layout")
    if use_qk_l2norm_in_kernel:
        q, k = unit_length(q), unit_length(k)
    if use_gate_in_kernel:
        if g is None or A_log is None:
            raise ValueError("use_gate_in_kernel=True needs the raw gate g and A_log (got None)")
        g = forget_gate(g.unsqueeze(-1), A_log, dt_bias).squeeze(-1)
    if beta is None:
        beta = v.new_ones(v.shape[:3])
    beta = write_strength(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval).to(v.dtype)
    beta = beta if beta.dim() == v.dim() else beta.unsqueeze(-1)
    g = None if g is None else g.unsqueeze(-1)  # [B, T, HV, 1]
    if gk is not None:
        g = gk if g is None else g + gk
    layout = {"scale": scale, "initial_state": initial_state, "output_final_state": output_final_state,
              "cu_seqlens": cu_seqlens, "state_v_first": layout_asked(state_v_first, kwargs)}  # fmt: skip
    if gv is None and beta.shape[-1] == 1:
        return run(q, k, v * beta, share_heads(k, v.shape[2]) * beta, g, **layout)
    return run_by_channel(q, k, v, beta, g, gv, k, **layout)


def chunk_comba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor | None,
    g: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - S_{t-1}^T p_t) ("Comba", arXiv:2506.02475).

    ``p`` [B, T, H, K] reads the state before it decays, ``k`` if None. ``use_qk_l2norm_in_kernel`` normalises it too.

    Raises:
        ValueError: borders, heads or states that do not fit.
    """
    p = k if p is None else p
    if use_qk_l2norm_in_kernel:
        q, k, p = unit_length(q), unit_length(k), unit_length(p)
    beta = v.new_ones(v.shape[:3]) if beta is None else beta
    beta = beta.to(v.dtype).unsqueeze(-1)
    return run(
        q, k, v * beta, share_heads(p, v.shape[2]) * beta, g.unsqueeze(-1), scale=scale, initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens, erase_first=True,
    )  # fmt: skip


def fused_recurrent_comba(
    q: Tensor,
    k: Tensor,
    p: Tensor | None,
    v: Tensor,
    g: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_comba``, with ``p`` before ``v``."""
    return chunk_comba(
        q, k, v, p, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens
    )


def chunk_gated_delta_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    num_householder: int,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    cp_context: Any = None,
) -> tuple[Tensor, Tensor | None]:
    """``n = num_householder`` delta-rule writes per token after one decay ("DeltaProduct", arXiv:2502.10297).

    ``k``, ``v`` and ``beta`` are [B, T * n, H, ...], a token's n writes side by side; ``q`` and ``g`` [B, T, H, ...].

    Raises:
        ValueError: lengths, borders, heads or states that do not fit; ``cp_context``.
    """
    refuse_context(cp_context)
    if k.shape[1] != q.shape[1] * num_householder:
        raise ValueError(f"{num_householder} writes for {q.shape[1]} tokens are not {k.shape[1]} keys")
    if use_qk_l2norm_in_kernel:
        q, k = unit_length(q), unit_length(k)
    last = q.unsqueeze(2)  # [B, T, 1, H, K]: a token is read after its last write, and decays before its first
    last = torch.nn.functional.pad(last, (0, 0, 0, 0, num_householder - 1, 0)).flatten(1, 2)
    if g is not None:
        g = torch.nn.functional.pad(g[:, :, None, :, None], (0, 0, 0, 0, 0, num_householder - 1)).flatten(1, 2)
    beta = beta.to(v.dtype).unsqueeze(-1)
    o, state = run(
        last, k, v * beta, k * beta, g, scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        cu_seqlens=None if cu_seqlens is None else cu_seqlens * num_householder,
    )  # fmt: skip
    return o[:, num_householder - 1 :: num_householder], state
