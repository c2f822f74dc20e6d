"""Depthwise causal convolution over a few tokens, with packed documents and a cache.

The sum over taps is a sum of shifted copies: each is one fused multiply-add over the whole sequence, which on a CPU is
three times as fast as a grouped convolution. It runs over document borders; the first W - 1 tokens of each document
are then computed again from what stands before them, the initial state or nothing.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flame.ops.norms import SWISH
from flame.ops.precision import wide


class ShiftedSum(torch.autograd.Function):
    """``y_t = bias + sum_j weight[:, W - 1 - j] x_{t - j}`` over rows [B, T, D] that begin with zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the wide sum [B, T, D] of ``x`` [B, T, D], ``weight`` [D, W] and ``bias`` [D]."""
        ctx.save_for_backward(x, weight)
        ctx.bias = None if bias is None else bias.dtype
        values, taps = wide(x), _taps(weight)
        y = values * taps[0] if bias is None else torch.addcmul(wide(bias), values, taps[0])
        for shift in range(1, min(len(taps), x.shape[1])):
            y[:, shift:].addcmul_(values[:, :-shift], taps[shift])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of ``x``, ``weight`` and ``bias``."""
        x, weight = ctx.saved_tensors
        values, taps = wide(x), _taps(weight)
        dx = dy * taps[0]
        dtaps = torch.zeros_like(taps)
        dtaps[0] = (dy * values).flatten(0, 1).sum(0)
        for shift in range(1, min(len(taps), x.shape[1])):
            later, earlier = dy[:, shift:], values[:, :-shift]
            dx[:, :-shift].addcmul_(later, taps[shift])
            dtaps[shift] = (later * earlier).sum((0, 1))
        dbias = None if ctx.bias is None else dy.flatten(0, 1).sum(0).to(ctx.bias)
        return dx.to(x.dtype), dtaps.flip(0).mT.to(weight.dtype), dbias


def _taps(weight: Tensor) -> Tensor:
    """[W, D] the weights from the token itself backwards, each row contiguous: strided rows cost six times the time."""
    return wide(weight).mT.flip(0).contiguous()


def causal_conv1d(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool | None = False,
    activation: str | None = None,
    backend: str | None = "triton",
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """``act(conv(x)) + residual``, each channel by itself, seeing the last W tokens of its own document.

    Args:
        x: [B, T, D] or [B, T, H, D / H].
        weight: [D, W], the last column for the token itself.
        bias: [D].
        residual: [B, T, D], added after the activation (Canon layers).
        initial_state: [N, D, W] the last W inputs before each document.
        output_final_state: also return those after each document.
        activation: ``silu`` (``swish``) or None.
        backend, cu_seqlens_cpu, chunk_indices, kwargs: fla's choice of kernel; they change nothing here.
        cu_seqlens: [N + 1] borders of packed documents, with B = 1.
        cp_context: context parallelism, which this function does not have.

    Returns:
        The output, of the shape and dtype of ``x``, and the final state [N, D, W] or None.

    Raises:
        ValueError: there is no weight, the activation is unknown, ``cp_context`` is given, or the borders do not cover
            one row of tokens.
    """
    if cp_context is not None:
        raise ValueError("cp_context: the plain-PyTorch causal_conv1d has no context parallelism; pass None")
    if weight is None:
        raise ValueError("causal_conv1d needs a weight of shape [D, W]")
    shape = x.shape
    x = x.reshape(*shape[:2], weight.shape[0])
    y = ShiftedSum.apply(x, weight, bias)
    if cu_seqlens is not None or initial_state is not None:
        tokens, values = _heads(x, weight, bias, initial_state, cu_seqlens)
        y = y.flatten(0, 1).index_copy(0, tokens, values).view_as(y)
    y = _activated(y, activation)
    if residual is not None:
        y = y + residual.reshape(y.shape)
    final = None
    if output_final_state:
        final = causal_conv1d_update_states(x, weight.shape[1], initial_state, cu_seqlens)
    return y.to(x.dtype).view(shape), final


def _activated(y: Tensor, activation: str | None) -> Tensor:
    if activation is None:
        return y
    if activation not in SWISH:
        raise ValueError(f"activation '{activation}' of a causal convolution is none of {', '.join(SWISH)}, None")
    return F.silu(y)


def _documents(x: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where each document begins and ends [N] among the B * T tokens of ``x``."""
    batch, length = x.shape[:2]
    if cu_seqlens is None:
        starts = torch.arange(0, batch * length, length, device=x.device)
        return starts, starts + length
    if batch != 1:
        raise ValueError(f"cu_seqlens needs one row of packed documents, got x of shape {tuple(x.shape)}")
    borders = cu_seqlens.to(device=x.device, dtype=torch.long)
    return borders[:-1], borders[1:]


def _heads(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The first W - 1 tokens of every document [M], and what their own past gives them [M, D]."""
    starts, ends = _documents(x, cu_seqlens)
    reach = weight.shape[1] - 1
    tokens = starts[:, None] + torch.arange(reach, device=x.device)  # [N, W - 1]
    inside = tokens < ends[:, None]
    head = x.flatten(0, 1)[tokens.where(inside, 0)]  # [N, W - 1, D]
    past = torch.zeros_like(head) if state is None else state[..., 1:].mT.to(head.dtype)
    window = wide(torch.cat([past, head], 1))  # [N, 2 W - 2, D]
    taps = wide(weight).mT  # [W, D]
    values = sum(window[:, tap : tap + reach] * taps[tap] for tap in range(reach + 1))
    assert isinstance(values, Tensor)
    if bias is not None:
        values = values + wide(bias)
    if cu_seqlens is None:  # the same selection, of a size that is known without asking the device
        return tokens[:, : x.shape[1]].flatten(), values[:, : x.shape[1]].flatten(0, 1)
    return tokens[inside], values[inside]


def causal_conv1d_update_states(
    x: Tensor,
    state_len: int,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """The last ``state_len`` inputs of each document [N, D, W]; a shorter document keeps the end of its initial state.

    Args:
        x: [B, T, D], or [T, D] with ``cu_seqlens``.
        state_len: W.
        initial_state: [N, D, W]; zeros where it is None.
        cu_seqlens: [N + 1] borders of packed documents.
    """
    x = x if x.dim() == 3 else x.unsqueeze(0)
    starts, ends = _documents(x, cu_seqlens)
    tokens = ends[:, None] - state_len + torch.arange(state_len, device=x.device)  # [N, W]
    inside = tokens >= starts[:, None]
    last = x.flatten(0, 1)[tokens.where(inside, 0)].mT  # [N, D, W]
    if initial_state is None:
        return last.masked_fill(~inside.unsqueeze(1), 0)
    before = (tokens - starts[:, None] + state_len).clamp(max=state_len - 1)  # [N, W] the column of the state
    kept = initial_state.to(x.dtype).gather(2, before.unsqueeze(1).expand_as(last))
    return torch.where(inside.unsqueeze(1), last, kept)


def causal_conv1d_update(
    x: Tensor,
    cache: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One token per sequence; ``cache`` [N, D, W] takes it in place.

    Args:
        x: [N, D], [N, 1, D] or [1, N, D] (or with the channels split in two dimensions).
        cache: the last W inputs of each sequence.
        residual: added after the activation.
        weight, bias, activation: as in ``causal_conv1d``.

    Returns:
        The output, shaped as ``x``, and ``cache`` itself.

    Raises:
        ValueError: there is no weight, or the activation is unknown.
    """
    if weight is None:
        raise ValueError("causal_conv1d_update needs a weight of shape [D, W]")
    token = x.reshape(-1, weight.shape[0], 1)  # [N, D, 1]
    window = torch.cat([cache[..., 1:], token.to(cache.dtype)], -1)
    y = (wide(window) * wide(weight)).sum(-1)
    if bias is not None:
        y = y + wide(bias)
    y = _activated(y, activation)
    if residual is not None:
        y = y + residual.reshape(y.shape)
    with torch.no_grad():
        cache.copy_(window)
    return y.to(x.dtype).view(x.shape), cache
