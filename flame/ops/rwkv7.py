"""fla's entry points of RWKV-7: the recurrence of ``dplr`` and the element-wise steps around it (arXiv:2503.14456)."""

from typing import Any

import torch
from torch import Tensor

from flame.ops.dplr import chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule


def chunk_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    safe_gate: bool = False,
    chunk_size: int | None = None,
    disable_recompute: bool = False,
    cp_context: Any = None,
    lower_bound: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``chunk_dplr_delta_rule`` with receptances ``r`` for queries and log decays ``w``, all [B, T, H, K].

    Raises:
        ValueError: borders or states that do not fit; ``cp_context``.
    """
    return chunk_dplr_delta_rule(
        r, k, v, a, b, w, scale, initial_state, output_final_state, cu_seqlens, cp_context=cp_context
    )


def fused_recurrent_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = True,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_rwkv7``, with the scale K^-0.5 unless one is given."""
    return chunk_dplr_delta_rule(r, k, v, a, b, w, scale, initial_state, output_final_state, cu_seqlens)


def fused_mul_recurrent_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    kk: Tensor,
    a: Tensor,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_rwkv7`` with the removal key ``kk`` and its strength ``a``: reads -kk, writes kk * a."""
    return fused_recurrent_dplr_delta_rule(
        r, k, v, -kk, kk * a, w, scale, initial_state, output_final_state, reverse, cu_seqlens
    )


def fused_addcmul_rwkv7(
    hidden_states: Tensor,
    delta: Tensor,
    xr: Tensor,
    xw: Tensor,
    xk: Tensor,
    xv: Tensor,
    xa: Tensor,
    xg: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """``hidden_states + delta * x`` [B, T, D] for each of the six mixes ``x`` [1, 1, D]; None for a missing ``xg``."""
    return tuple(None if x is None else torch.addcmul(hidden_states, delta, x) for x in (xr, xw, xk, xv, xa, xg))


def fused_k_rwkv7(
    k: Tensor, a: Tensor, ka: Tensor, cu_seqlens: Tensor | None = None, cu_seqlens_cpu: Tensor | None = None
) -> Tensor:
    """``k (1 + (a - 1) ka)`` of keys and strengths [B, T, D]; the borders change nothing."""
    return k.addcmul(k * (a - 1), ka)


def gate_output_correction(o: Tensor, r: Tensor, k: Tensor, r_k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """Adds what the own token contributes to ``o`` [B, T, H * D] and gates the sum with ``g`` [B, T, H * D].

    ``r``, ``k`` and ``v`` are [B, T, H, D]; ``r_k`` [H, D] weighs the channels of ``r * k``.
    """
    own = (r * k * r_k).sum(-1, keepdim=True) * v  # [B, T, H, D]
    return (o + own.flatten(2)) * g
