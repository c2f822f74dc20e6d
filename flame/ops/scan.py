"""Element-wise linear recurrence ``h_t = exp(g_t) h_{t-1} + x_t``: HGRN (Qin et al., arXiv:2311.04823) and selective
scans.

Chunks run side by side: as many steps as a chunk has tokens, on tensors of all chunks, then as many as a document has
chunks. The gradient is the same recurrence backwards.
"""

from typing import Any

import torch
from torch import Tensor

from flame.ops.chunks import Chunks, chunks_of
from flame.ops.precision import precision
from flame.ops.states import documents_of
from flame.ops.values import has_values

SCAN_CHUNK = 32
"""Tokens per chunk: steps within a chunk and chunks within a document cost the same, so near the root of usual
lengths."""


def elementwise_scan(
    x: Tensor, g: Tensor, state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All ``h_t`` and the last ones.

    Args:
        x: [B, T, D] what each token adds.
        g: [B, T, D] log decays.
        state: [N, D] before the first tokens.
        cu_seqlens: [N + 1] the borders of packed documents.

    Returns:
        [B, T, D] in the dtype of ``x`` and [N, D] in float32 (float64 for float64).
    """
    dtype = precision(x)
    chunks = chunks_of(x, cu_seqlens, SCAN_CHUNK)
    if state is None:
        state = torch.zeros(chunks.documents, x.shape[-1], dtype=dtype, device=x.device)
    elif state.shape != (chunks.documents, x.shape[-1]):
        raise ValueError(
            f"an initial state of shape {tuple(state.shape)} does not fit; "
            f"this call needs {(chunks.documents, x.shape[-1])}"
        )
    rows = chunks.split(x.to(dtype).unsqueeze(2)).squeeze(1)  # [R, C, D]
    decay = chunks.split(g.to(dtype).unsqueeze(2)).squeeze(1).exp()  # 1 where there is no token
    if not has_values(x):
        return x * g, state.to(dtype)
    h, final = _Scan.apply(rows, decay, state.to(dtype), chunks)
    return chunks.join(h.unsqueeze(1)).squeeze(2).to(x.dtype), final


class _Scan(torch.autograd.Function):
    """The recurrence over rows of chunks, with its reverse as the gradient: no intermediate is kept but ``h``
    itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: Tensor, state: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor]:
        h = torch.empty_like(x)
        running, product = x[:, 0].clone(), decay[:, 0].clone()
        products = torch.empty_like(decay)
        h[:, 0], products[:, 0] = running, product
        for t in range(1, x.shape[1]):
            running = torch.addcmul(x[:, t], decay[:, t], running, out=h[:, t])
            product = torch.mul(product, decay[:, t], out=products[:, t])
        before, final = chunks.carry(products[:, -1], h[:, -1], state)
        h.addcmul_(products, before.unsqueeze(1))
        ctx.save_for_backward(decay, h, before)
        ctx.chunks = chunks
        return h, final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        decay, h, before = ctx.saved_tensors
        grad, grad_final = grads
        # d_t = grad_t + decay_{t+1} d_{t+1}: within the chunk first, as if nothing came after it.
        d = torch.empty_like(grad)
        reach = torch.empty_like(decay)  # how much of what comes after the chunk arrives at t
        d[:, -1] = grad[:, -1]
        reach[:, -1] = 1
        for t in range(grad.shape[1] - 2, -1, -1):
            torch.addcmul(grad[:, t], decay[:, t + 1], d[:, t + 1], out=d[:, t])
            torch.mul(reach[:, t + 1], decay[:, t + 1], out=reach[:, t])
        entering = reach[:, 0] * decay[:, 0]  # of the chunk's last state, with respect to the one before it
        after, grad_state = _carry_back(ctx.chunks, entering, d[:, 0] * decay[:, 0], grad_final)
        d.addcmul_(reach, after.unsqueeze(1))
        previous = torch.cat([before.unsqueeze(1), h[:, :-1]], 1)
        return d, d * previous, grad_state, None


def _carry_back(chunks: Chunks, decay: Tensor, update: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients [R, D] of each chunk's last state from what follows it, and [N, D] of the initial states.

    Args:
        chunks: the layout.
        decay: [R, D] how a chunk's last state depends on the one before it.
        update: [R, D] the gradient that the chunk's own outputs send to the state before it.
        last: [N, D] the gradients of the final states.
    """
    if chunks.order is not None:
        last = last.index_select(0, chunks.order)
    after = torch.empty_like(update)
    end, running = len(update), last[:0]
    for count in reversed(chunks.steps):
        rows = slice(end - count, end)
        running = torch.cat([running, last[len(running) : count]])
        after[rows] = running
        running = torch.addcmul(update[rows], decay[rows], running)
        end -= count
    running = torch.cat([running, last[len(running) :]])
    return after, running if chunks.order is None else running.index_select(0, chunks.order.argsort())


def elementwise_scan_by_token(
    x: Tensor, g: Tensor, state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence that ``elementwise_scan`` computes, one token at a time."""
    dtype = precision(x)
    outputs, finals = [], []
    for index, (row, tokens) in enumerate(documents_of(x, cu_seqlens)):
        h = torch.zeros(x.shape[-1], dtype=dtype, device=x.device) if state is None else state[index].to(dtype)
        for t in tokens:
            h = h * g[row, t].to(dtype).exp() + x[row, t].to(dtype)
            outputs.append(h)
        finals.append(h)
    return torch.stack(outputs).view(x.shape).to(x.dtype), torch.stack(finals)


def chunk_hgrn(
    x: Tensor, g: Tensor, initial_state: Tensor | None = None, output_final_state: bool = False
) -> tuple[Tensor, Tensor | None]:
    """fla's entry point of ``elementwise_scan``."""
    o, state = elementwise_scan(x, g, initial_state)
    return o, state if output_final_state else None


def fused_recurrent_hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_hgrn``, with packed documents."""
    o, state = elementwise_scan(x, g, initial_state, cu_seqlens)
    return o, state if output_final_state else None
