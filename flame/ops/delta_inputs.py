"""What the entry points of the delta rules do before and after the recurrence: norms, gates, shared heads, layouts."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from flame.ops.delta import delta_rule

EPSILON = 1e-6
"""Added to the squared length before its root, as fla's kernels do."""


def unit_length(x: Tensor) -> Tensor:
    """``x`` [..., D] divided by its length, in the dtype of ``x``."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + EPSILON)).to(x.dtype)


def share_heads(x: Tensor, heads: int) -> Tensor:
    """Gives every head of ``x`` [B, T, H, D] to ``heads / H`` neighbouring value heads.

    Raises:
        ValueError: ``heads`` is no multiple of H.
    """
    if heads % x.shape[2]:
        raise ValueError(f"{heads} value heads cannot share {x.shape[2]} key heads evenly")
    return x if heads == x.shape[2] else x.repeat_interleave(heads // x.shape[2], dim=2)


def forget_gate(g: Tensor, A_log: Tensor | None, dt_bias: Tensor | None, lower_bound: float | None = None) -> Tensor:
    """Log decays of raw gates ``g`` [..., H, K] with ``A_log`` [H] and ``dt_bias`` [H * K].

    ``-exp(A_log) softplus(g + dt_bias)``, or ``lower_bound sigmoid(exp(A_log) (g + dt_bias))`` where there is a bound,
    which may go without ``A_log``.

    Raises:
        ValueError: neither ``A_log`` nor ``lower_bound``.
    """
    g = g if g.dtype == torch.float64 else g.float()
    if dt_bias is not None:
        g = g + dt_bias.to(g.dtype).view(g.shape[-2:])
    rate = None if A_log is None else A_log.to(g.dtype).view(-1, 1).exp()
    if lower_bound is not None:
        return lower_bound * torch.sigmoid(g if rate is None else rate * g)
    if rate is None:
        raise ValueError("the gate needs A_log, or a lower_bound (got neither)")
    return -rate * softplus(g)


def write_strength(beta: Tensor, use_beta_sigmoid_in_kernel: bool, allow_neg_eigval: bool) -> Tensor:
    """The share of the old value that is replaced, in (0, 1), or in (0, 2) with negative eigenvalues.

    Raises:
        ValueError: ``allow_neg_eigval`` without the sigmoid that it widens.
    """
    if not use_beta_sigmoid_in_kernel:
        if allow_neg_eigval:
            raise ValueError("allow_neg_eigval=True needs use_beta_sigmoid_in_kernel=True, or pass 2 * beta yourself")
        return beta
    wide = beta if beta.dtype == torch.float64 else beta.float()
    return (wide.sigmoid() * (2.0 if allow_neg_eigval else 1.0)).to(beta.dtype)


def refuse_context(cp_context: object) -> None:
    """Raises ValueError where a caller wants fla's context parallelism, which needs its kernels."""
    if cp_context is not None:
        raise ValueError("cp_context needs fla's Triton kernels; plain-PyTorch mixers run without context parallelism")


def refuse_states(return_intermediate_states: bool) -> None:
    """Raises ValueError where a server wants the state of every 64th token."""
    if return_intermediate_states:
        raise ValueError("return_intermediate_states needs fla's Triton kernels; pass output_final_state=True instead")


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    erase: Tensor,
    g: Tensor | None,
    *,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
    state_v_first: bool = False,
    erase_first: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``delta_rule`` with fla's scale (default K^-0.5) and layouts of the state ([N, H, V, K] if ``state_v_first``).

    Keys and queries [B, T, H, K] may have fewer heads than ``v`` [B, T, HV, V]; ``erase`` and ``g`` have HV.

    Raises:
        ValueError: ``initial_state`` has not one state per document.
    """
    documents = len(v) if cu_seqlens is None else len(cu_seqlens) - 1
    if initial_state is not None and len(initial_state) != documents:
        raise ValueError(f"initial_state has {len(initial_state)} states for {documents} documents; pass one for each")
    if initial_state is not None and state_v_first:
        initial_state = initial_state.mT
    q = share_heads(q * (k.shape[-1] ** -0.5 if scale is None else scale), v.shape[2])
    o, state = delta_rule(q, share_heads(k, v.shape[2]), v, erase, g, initial_state, cu_seqlens, erase_first)
    if not output_final_state:
        return o, None
    return o, state.mT.contiguous() if state_v_first else state


def run_by_channel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None,
    gv: Tensor | None,
    read: Tensor,
    *,
    initial_state: Tensor | None,
    state_v_first: bool,
    output_final_state: bool,
    scale: float | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """``run`` where ``beta`` [B, T, HV, 1 or V] or decays ``gv`` [B, T, HV, V] differ between a value's channels.

    Each channel becomes a head: as exact as the rest and V times the work; fla's layers do not ask for it. ``read``
    [B, T, H, K] are the keys that are read before ``beta`` gates them.
    """
    width = v.shape[-1]
    q, k, read = (share_heads(x, v.shape[2]).repeat_interleave(width, dim=2) for x in (q, k, read))
    values, beta = v.flatten(2).unsqueeze(-1), beta.expand(v.shape).flatten(2).unsqueeze(-1)
    g = None if g is None else g.repeat_interleave(width, dim=2)
    if gv is not None:
        gv = gv.flatten(2).unsqueeze(-1)
        g = gv if g is None else g + gv
    if initial_state is not None:
        initial_state = (initial_state if state_v_first else initial_state.mT).flatten(1, 2).unsqueeze(-1)
    o, state = run(q, k, values * beta, read * beta, g, scale=scale, initial_state=initial_state,
                   output_final_state=output_final_state, cu_seqlens=cu_seqlens)  # fmt: skip
    if state is not None:
        state = state.squeeze(-1).unflatten(1, v.shape[2:])  # [N, HV, V, K]
        state = state if state_v_first else state.mT.contiguous()
    return o.view_as(v), state
