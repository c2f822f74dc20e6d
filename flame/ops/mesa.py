"""MesaNet: each token reads with the query that solves a ridge regression on all keys so far (arXiv:2506.05233).

    H_t = exp(g_t) H_{t-1} + beta_t k_t k_t^T,    S_t = exp(g_t) S_{t-1} + beta_t k_t v_t^T
    o_t = S_t^T x_t  with  (H_t + diag(lamb)) x_t = q_t

The systems are solved by conjugate gradients, for all tokens at once: a product with every H_t is a linear attention
inside chunks plus one product with the state before them. Gradients come from the solved systems, not from the
iterations: with (H + diag(lamb)) y = dx, the gradient of q is y, and that of H is -x y^T.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flame.ops.chunks import chunks_of
from flame.ops.decay import cumulative, decay_mask
from flame.ops.delta import chunk_size
from flame.ops.delta_inputs import unit_length
from flame.ops.precision import precision
from flame.ops.rows import exact, uncompiled
from flame.ops.states import documents_of

TINY = 1e-5
"""Added to the denominators, as fla does: a solved system stays where it is."""

Product = Callable[[Tensor], Tensor]


def conjugate_gradients(product: Product, target: Tensor, iterations: int, start: Tensor | None = None) -> Tensor:
    """``x`` [..., K] with ``product(x) = target`` for symmetric positive matrices, from ``start`` or zero."""
    x = torch.zeros_like(target) if start is None else start
    residual = target if start is None else target - product(start)
    direction, size = residual, residual.square().sum(-1, keepdim=True)
    for _ in range(iterations):
        image = product(direction)
        step = size / ((direction * image).sum(-1, keepdim=True) + TINY)
        x, residual = torch.addcmul(x, step, direction), torch.addcmul(residual, step, image, value=-1)
        left = residual.square().sum(-1, keepdim=True)
        direction, size = torch.addcmul(residual, left / (size + TINY), direction), left
    return x


class _Solve(torch.autograd.Function):
    """Adds to a solution ``x`` what its residual says about gradients: nothing forward, the solved system backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, product: Product, iterations: int) -> Tensor:
        ctx.product, ctx.iterations = product, iterations
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[None, Tensor, None, None]:
        # At unit length, because a gradient may be as small as TINY or smaller.
        length = torch.linalg.vector_norm(grad_outputs[0], dim=-1, keepdim=True)
        with exact(length):
            target = grad_outputs[0] / length.clamp(min=torch.finfo(length.dtype).tiny)
            return None, length * conjugate_gradients(ctx.product, target, ctx.iterations), None, None


@uncompiled
def mesa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    states: tuple[Tensor | None, Tensor | None] = (None, None),
    iterations: int = 30,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The layer over every document, in float32 throughout (float64 for float64): the systems need it.

    Args:
        q, k: [B, T, H, K].
        v: [B, T, H, V].
        g, beta: [B, T, H] log decays and weights.
        lamb: [H, K] ridges.
        states: H [N, H, K, K] and S [N, H, K, V] before the first tokens; None for zeros.
        iterations: of the conjugate gradients, forward and backward.
        cu_seqlens: [N + 1] borders of packed documents, of one row.

    Returns:
        Outputs [B, T, H, V] in the dtype of ``v``, and the final H and S in float32 (float64 for float64).

    Raises:
        ValueError: ``cu_seqlens`` does not fit the tokens.
    """
    layout, dtype, out = chunks_of(v, cu_seqlens, chunk_size(v)), precision(v), v.dtype
    widths = [k.shape[-1], v.shape[-1]]
    zeros = v.new_zeros(layout.documents, k.shape[2], k.shape[-1], sum(widths), dtype=dtype).split(widths, -1)
    first = torch.cat([zero if x is None else x.to(dtype) for x, zero in zip(states, zeros, strict=True)], -1)
    with exact(v):
        q, k, v = (layout.split(x.to(dtype)) for x in (q, k, v))
        sums, weight = cumulative(layout.split(g.unsqueeze(-1))), layout.split(beta.to(dtype).unsqueeze(-1))
        mask, since = decay_mask(sums).to(dtype) * weight.mT, sums.to(dtype).exp()
        until = (sums[..., -1:, :] - sums).to(dtype).exp()
        update = (k * until * weight).mT @ torch.cat([k, v], -1)  # [R, H, K, K + V]
        before, final = layout.carry(since[..., -1:, :], update, first)
        moments, values = before.split(widths, -1)
        x = _solved(q, (k, k, moments, mask, since), lamb.to(dtype).unsqueeze(-2), iterations)
        o = layout.join(_read(x, (k, v, values, mask, since)))
    moments, values = final.split(widths, -1)
    return o.to(out), moments, values


_Past = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Keys [R, H, C, K], values [R, H, C, V], the states before [R, H, K, V], the masks of scores and the decays since."""


def _read(x: Tensor, past: _Past) -> Tensor:
    """What queries ``x`` [R, H, C, K] read of all tokens up to their own."""
    keys, values, state, mask, since = past
    return (x * since) @ state + ((x @ keys.mT) * mask) @ values


def _solved(q: Tensor, past: _Past, ridge: Tensor, iterations: int) -> Tensor:
    """The ``x`` [R, H, C, K] with ``_read(x, past) + ridge * x = q``, where keys are read as values."""
    keys, values, state, mask, since = (x.detach() for x in past)
    held = ridge.detach()

    def product(x: Tensor) -> Tensor:
        return _read(x, (keys, values, state, mask, since)) + held * x

    with torch.no_grad():
        x = conjugate_gradients(product, q, iterations)
    if not torch.is_grad_enabled():
        return x
    return _Solve.apply(x, q - _read(x, past) - ridge * x, product, iterations)


def mesa_by_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    states: tuple[Tensor | None, Tensor | None] = (None, None),
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``mesa`` token by token with every system solved exactly: what defines it."""
    outputs, moments, kept = [], [], []
    for index, (row, part) in enumerate(documents_of(v, cu_seqlens)):
        seen, state = (
            v.new_zeros(v.shape[2], k.shape[-1], n) if x is None else x[index]
            for x, n in zip(states, (k.shape[-1], v.shape[-1]), strict=True)
        )
        for t in part:
            decay, key = g[row, t].exp()[:, None, None], (k[row, t] * beta[row, t].unsqueeze(-1)).unsqueeze(-1)
            seen = decay * seen + key * k[row, t].unsqueeze(-2)
            state = decay * state + key * v[row, t].unsqueeze(-2)
            x = torch.linalg.solve(seen + torch.diag_embed(lamb), q[row, t])
            outputs.append(torch.einsum("hk,hkv->hv", x, state))
        moments.append(seen)
        kept.append(state)
    return torch.stack(outputs).view_as(v), torch.stack(moments), torch.stack(kept)


def chunk_mesa_net(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    h_kk_init: Tensor | None = None,
    h_kv_init: Tensor | None = None,
    output_final_state: bool = False,
    max_CG_iteration: int = 30,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``mesa`` with fla's arguments; the final H and S only if ``output_final_state``.

    Raises:
        ValueError: borders that do not fit.
    """
    if use_qk_l2norm_in_kernel:
        q, k = unit_length(q), unit_length(k)
    o, moments, state = mesa(q, k, v, g, beta, lamb, (h_kk_init, h_kv_init), max_CG_iteration, cu_seqlens)
    return (o, moments, state) if output_final_state else (o, None, None)


def mesa_net_decoding_one_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    lamb: Tensor,
    beta: Tensor,
    prev_h_kk: Tensor,
    prev_h_kv: Tensor,
    max_CG_iteration: int = 30,
) -> tuple[Tensor, Tensor, Tensor]:
    """One token [B, H, K] of every document: output [B, H, V] in the dtype of ``q``, and the new H and S.

    The iterations begin at q / (diag(H) + lamb), so that few suffice.
    """
    out, dtype = q.dtype, precision(q)
    q, k, v, ridge = q.to(dtype), k.to(dtype), v.to(dtype), lamb.to(dtype)
    decay, key = g.to(dtype).exp()[..., None, None], (k * beta.to(dtype).unsqueeze(-1)).unsqueeze(-1)
    moments = decay * prev_h_kk + key * k.unsqueeze(-2)
    state = decay * prev_h_kv + key * v.unsqueeze(-2)

    def product(x: Tensor) -> Tensor:
        return torch.einsum("bhk,bhkl->bhl", x, moments) + ridge * x

    start = q / (moments.diagonal(dim1=-2, dim2=-1) + ridge + TINY)
    x = conjugate_gradients(product, q, max_CG_iteration, start)
    return torch.einsum("bhk,bhkv->bhv", x, state).to(out), moments, state
