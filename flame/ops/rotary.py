"""Rotary position embedding (Su et al. 2021, RoFormer)."""

from typing import Any

import torch
from torch import Tensor

from flame.ops.precision import wide


class Rotation(torch.autograd.Function):
    """Rotates the pairs of the first 2R channels of ``x`` [B, T, H, D] by the angles of ``cos``, ``sin`` [.., T, 1, R].

    A rotation's gradient is the rotation back, so nothing of the size of ``x`` is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        """Returns the rotated ``x`` in its own dtype."""
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotated(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient of ``x`` alone: the tables are constants."""
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, -sin, ctx.interleaved), None, None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    width = 2 * cos.shape[-1]
    turned, rest = wide(x[..., :width]), x[..., width:]
    if interleaved:
        # Neighbours are the parts of a complex number: one pass, where strided halves would take four slow ones.
        pairs = torch.view_as_complex(turned.unflatten(-1, (-1, 2)).contiguous())
        y = torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        y = torch.cat([second, first], -1).mul_(torch.cat([-sin, sin], -1)).addcmul_(turned, torch.cat([cos, cos], -1))
    return torch.cat([y.to(x.dtype), rest], -1) if rest.shape[-1] else y.to(x.dtype)


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    chunk_indices: Tensor | None = None,
) -> Tensor:
    """Rotates token ``t`` of each document by the angles of position ``t + offset``.

    Args:
        x: [B, T, H, D].
        cos, sin: [P, R] of P positions; the first 2R channels are rotated, the others pass through.
        interleaved: pairs are neighbours (GPT-J) instead of the two halves (GPT-NeoX).
        inplace: also write the result into ``x``.
        seqlen_offsets: where documents begin, one number or [N]. Tokens of a negative position (left padding) get zeros
            in the rotated channels.
        cu_seqlens: [N + 1] borders of packed documents, with B = 1.
        chunk_indices: a hint to fla's kernel, unused.

    Raises:
        ValueError: the tables are wider than the heads, or do not reach the last position.
    """
    if 2 * cos.shape[-1] > x.shape[-1]:
        raise ValueError(f"rotary tables of width {cos.shape[-1]} need heads of twice that, got {x.shape[-1]}")
    length, table = x.shape[1], len(cos)
    cos, sin = wide(cos), wide(sin)
    if cu_seqlens is None and isinstance(seqlen_offsets, int) and seqlen_offsets >= 0:
        _check(seqlen_offsets + length, table)
        window = slice(seqlen_offsets, seqlen_offsets + length)
        y = Rotation.apply(x, cos[window, None], sin[window, None], interleaved)
    else:
        positions = _positions(x, seqlen_offsets, cu_seqlens)  # [B or 1, T]
        if isinstance(seqlen_offsets, Tensor) or seqlen_offsets + length > table:
            # Else no document can be longer than the table, and the device need not be asked.
            _check(int(positions.max()) + 1 if positions.numel() else 0, table)
        index = positions.clamp(min=0)
        known = (positions >= 0)[..., None, None]
        # A zero angle table gives the zeros of positions before the first.
        y = Rotation.apply(x, cos[index].unsqueeze(2) * known, sin[index].unsqueeze(2) * known, interleaved)
    return x.copy_(y) if inplace else y


def _check(needed: int, table: int) -> None:
    if needed > table:
        raise ValueError(f"the rotary tables hold {table} positions, but {needed} are needed")


def _positions(x: Tensor, offsets: int | Tensor, cu_seqlens: Tensor | None) -> Tensor:
    length, device = x.shape[1], x.device
    tokens = torch.arange(length, device=device)
    offsets = offsets.to(device) if isinstance(offsets, Tensor) else torch.tensor([offsets], device=device)
    if cu_seqlens is None:
        return tokens + offsets[:, None]
    borders = cu_seqlens.to(device=device, dtype=torch.long)
    document = torch.bucketize(tokens, borders[1:], right=True)  # [T] which document a token belongs to
    begin = borders[:-1] - offsets  # [N]
    return (tokens - begin[document])[None]
