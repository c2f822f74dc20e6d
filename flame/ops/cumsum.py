"""Running sums over whole documents."""

from typing import Any

import torch
from torch import Tensor


def chunk_global_cumsum(
    s: Tensor,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    output_dtype: torch.dtype | None = torch.float,
    **kwargs: Any,
) -> Tensor:
    """Running sums over the tokens of each document, the own token included.

    Args:
        s: [B, T, H] or [B, T, H, D].
        reverse: sums from the end.
        cu_seqlens: [N + 1] borders of packed documents, with B = 1.
        scale: factor of the result.
        output_dtype: dtype of the result; that of ``s`` where it is None.
        kwargs: none is known.

    Raises:
        ValueError: another number of dimensions, more than one row beside ``cu_seqlens``, or an unknown argument.
    """
    if kwargs:
        raise ValueError(f"chunk_global_cumsum knows no argument {', '.join(kwargs)}; inputs are [B, T, H, ...]")
    if s.dim() not in (3, 4):
        raise ValueError(f"s of shape {tuple(s.shape)} is neither [B, T, H] nor [B, T, H, D]")
    if cu_seqlens is not None and len(s) != 1:
        raise ValueError(f"cu_seqlens needs one row of packed documents, got s of shape {tuple(s.shape)}")
    # In float64: the sum of a document is a difference of two sums over all of them.
    values = s.double()
    total = values.cumsum(1)
    if cu_seqlens is not None:
        total = total - _at_start(total, values, cu_seqlens)
    if reverse:
        total = _at_end(total, cu_seqlens) - total + values
    if scale is not None:
        total = total * scale
    return total.to(output_dtype or s.dtype)


def _document(length: int, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The borders, and to which document each token belongs [T]."""
    borders = cu_seqlens.long()
    return borders, torch.bucketize(torch.arange(length, device=borders.device), borders[1:], right=True)


def _at_start(total: Tensor, values: Tensor, cu_seqlens: Tensor) -> Tensor:
    borders, document = _document(total.shape[1], cu_seqlens)
    first = borders[:-1][document]  # [T] the first token of the own document
    return (total - values)[:, first]


def _at_end(total: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    if cu_seqlens is None:
        return total[:, -1:]
    borders, document = _document(total.shape[1], cu_seqlens)
    return total[:, borders[1:][document] - 1]
