"""The delta rule with momentum: what a token would write goes into a velocity, and the velocity into the state.

    N_t = mu_t N_{t-1} + eta_t k_t (v_t - S_{t-1}^T p_t)^T,    S_t = alpha_t S_{t-1} + beta_t N_t,    o_t = S_t^T q_t

A write at token j reaches the state of token i by every way of staying in the velocity until some s and in the state
from there on: the weights are a product of two decay masks, Gamma = A diag(beta) M with A_is = exp(a_i - a_s) and
M_sj = exp(m_s - m_j). The rest is ``delta`` with a state of two halves, S above N.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flame.ops.chunks import Chunks, chunks_of
from flame.ops.decay import cumulative, decay_mask
from flame.ops.delta import by_steps, chunk_size, shifted, unit_lower_inverse
from flame.ops.delta_inputs import unit_length
from flame.ops.precision import precision
from flame.ops.rows import exact, uncompiled
from flame.ops.states import documents_of


@uncompiled
def momentum_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor,
    log_alpha: Tensor,
    log_mu: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence over every document.

    Args:
        q, k, p: [B, T, H, K] queries, already scaled, written keys, already times eta, and read keys.
        v: [B, T, H, V].
        log_alpha, log_mu, beta: [B, T, H].
        initial_state: [N, H, 2 K, V], S above N; None for zeros.
        cu_seqlens: [N + 1] borders of packed documents, of one row.

    Returns:
        Outputs [B, T, H, V] in the dtype of ``v`` and the final states [N, H, 2 K, V] in float32 (float64 for float64).

    Raises:
        ValueError: ``cu_seqlens`` does not fit the tokens.
    """
    with exact(v):
        layout, width, dtype = chunks_of(v, cu_seqlens, chunk_size(v)), 2 * k.shape[-1], precision(v)
        if initial_state is None:
            initial_state = v.new_zeros((layout.documents, v.shape[2], width, v.shape[-1]), dtype=dtype)
        q, k, v, p = (layout.split(x.to(v.dtype)) for x in (q, k, v, p))
        alpha, mu, beta = (layout.split(x.unsqueeze(-1)) for x in (log_alpha, log_mu, beta))  # [R, H, C, 1]
        chunk = _chunk(q, k, p, cumulative(alpha), cumulative(mu), beta.to(dtype))
        inverse = unit_lower_inverse(chunk.overlaps.to(dtype)).to(v.dtype)
        states, written, final = _walk(layout, chunk, inverse @ v, inverse @ chunk.read, initial_state.to(dtype))
        return layout.join(chunk.q @ states.to(v.dtype) + chunk.scores @ written), final


class _Chunk(NamedTuple):
    """Rows whose last but one dimension meets both halves of the state."""

    q: Tensor
    """[R, H, C, 2 K]."""
    k: Tensor
    """[R, H, C, 2 K] what a write leaves in both halves at the chunk's end."""
    read: Tensor
    """[R, H, C, 2 K]."""
    scores: Tensor
    overlaps: Tensor
    """[R, H, C, C], meaningful below the diagonal only."""
    alpha: Tensor
    """[R, H, 1, 1] how much of S stays in S, ``beta`` how much of N reaches it, ``mu`` how much of N stays."""
    beta: Tensor
    mu: Tensor


def _chunk(q: Tensor, k: Tensor, p: Tensor, a: Tensor, m: Tensor, beta: Tensor) -> _Chunk:
    dtype = beta.dtype
    from_state, from_velocity = a.to(dtype).exp(), m.to(dtype).exp()  # [R, H, C, 1] since the beginning
    paths = decay_mask(a).to(dtype) * beta.mT  # A diag(beta)
    gamma = paths @ decay_mask(m).to(dtype)
    reached = paths @ from_velocity  # what a unit of velocity at the beginning adds to the state of each token
    narrow, left = q.dtype, (m[..., -1:, :] - m).to(dtype).exp()
    return _Chunk(
        q=torch.cat([q * from_state.to(narrow), q * reached.to(narrow)], -1),
        k=torch.cat([k * gamma[..., -1:, :].mT.to(narrow), k * left.to(narrow)], -1),
        read=torch.cat([p * shifted(from_state, 1.0).to(narrow), p * shifted(reached).to(narrow)], -1),
        scores=(q @ k.mT) * gamma.to(narrow),
        overlaps=(p @ k.mT) * shifted(gamma).to(narrow),
        alpha=from_state[..., -1:, :],
        beta=reached[..., -1:, :],
        mu=from_velocity[..., -1:, :],
    )


def _walk(
    layout: Chunks, chunk: _Chunk, written: Tensor, removed: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The states before each chunk, what the tokens write given them, and the final states."""
    take = by_steps(layout, written, removed, chunk.k.mT, chunk.alpha, chunk.beta, chunk.mu)
    before: list[Tensor] = []

    def step(state: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        written, removed, keys, alpha, beta, mu = take(rows)
        before.append(state)
        written = written - removed @ state.to(written.dtype)
        weights, velocity = state.chunk(2, -2)
        kept = torch.cat([alpha * weights + beta * velocity, mu * velocity], -2)
        return written, kept + keys @ written

    written, final = layout.walk(state, step)
    return torch.cat(before), written, final


def momentum_rule_by_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor,
    log_alpha: Tensor,
    log_mu: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``momentum_rule`` token by token in the dtype given: what defines it."""
    outputs, states = [], []
    alpha, mu, beta = (x[..., None, None] for x in (log_alpha.exp(), log_mu.exp(), beta))
    for index, (row, part) in enumerate(documents_of(v, cu_seqlens)):
        state = v.new_zeros(v.shape[2], 2 * k.shape[-1], v.shape[-1]) if initial_state is None else initial_state[index]
        weights, velocity = state.chunk(2, -2)
        for t in part:
            error = v[row, t] - torch.einsum("hk,hkv->hv", p[row, t], weights)
            velocity = mu[row, t] * velocity + torch.einsum("hk,hv->hkv", k[row, t], error)
            weights = alpha[row, t] * weights + beta[row, t] * velocity
            outputs.append(torch.einsum("hk,hkv->hv", q[row, t], weights))
        states.append(torch.cat([weights, velocity], -2))
    return torch.stack(outputs).view_as(v), torch.stack(states)


def chunk_momentum_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    log_mu: Tensor,
    p: Tensor | None = None,
    beta: Tensor | None = None,
    eta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = True,
    use_p_times_alpha: bool = True,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor | None]:
    """``momentum_rule`` with fla's arguments and layout of the state.

    ``q``, ``k``, ``p`` [B, T, H, K] (``p`` defaults to ``k``), ``v`` [B, T, H, V], the rest [B, T, H] (``beta`` and
    ``eta`` default to ones). ``use_p_times_alpha`` reads with exp(log_alpha) p. States are [2, N, H, K, V]: S and -N.
    ``chunk_size`` is a hint.

    Raises:
        ValueError: borders that do not fit.
    """
    p = k if p is None else p
    if use_qk_l2norm_in_kernel:
        q, k, p = unit_length(q), unit_length(k), unit_length(p)
    if use_p_times_alpha:
        p = p * log_alpha.exp().unsqueeze(-1)
    k = k if eta is None else k * eta.unsqueeze(-1)
    beta = torch.ones_like(log_alpha) if beta is None else beta
    state = None if initial_state is None else torch.cat([initial_state[0], -initial_state[1]], -2)
    q = q * (k.shape[-1] ** -0.5 if scale is None else scale)
    o, state = momentum_rule(q, k, v, p, log_alpha, log_mu, beta, state, cu_seqlens)
    if not output_final_state:
        return o, None
    weights, velocity = state.chunk(2, -2)
    return o, torch.stack([weights, -velocity])


def fused_recurrent_momentum_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    log_mu: Tensor,
    p: Tensor | None = None,
    beta: Tensor | None = None,
    eta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = True,
    use_p_times_alpha: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_momentum_delta_rule``."""
    return chunk_momentum_delta_rule(
        q, k, v, log_alpha, log_mu, p, beta, eta, scale, initial_state, output_final_state, cu_seqlens,
        use_qk_l2norm_in_kernel, use_p_times_alpha,
    )  # fmt: skip
