"""Token shift (Peng et al. 2023, RWKV): what the previous token had, less what this one has."""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_shift(
    x: Tensor,
    cu_seqlens: Tensor | None = None,
    cache: Tensor | None = None,
    output_cache: bool = False,
    chunk_indices: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``x_{t-1} - x_t``, where nothing, or ``cache``, stands before the first token of a document.

    Args:
        x: [B, T, D].
        cu_seqlens: [N + 1] borders of packed documents, with B = 1.
        cache: [N, D] the last token before each document.
        output_cache: also return the last token of each document [N, D].
        chunk_indices: a hint to fla's kernel, unused.

    Raises:
        ValueError: ``cu_seqlens`` with more than one row.
    """
    if cu_seqlens is not None and (x.dim() != 3 or len(x) != 1):
        raise ValueError(f"cu_seqlens needs x of shape [1, T, D], got {tuple(x.shape)}")
    before = None if cache is None else cache.reshape(-1, x.shape[-1]).to(x.dtype)  # [N, D]
    if cu_seqlens is None:
        first = torch.zeros_like(x[:, :1]) if before is None else before.unsqueeze(1)
        delta = torch.cat([first, x[:, :-1]], 1) - x
        return (delta, x[:, -1]) if output_cache else delta
    borders = cu_seqlens.to(device=x.device, dtype=torch.long)
    starts, filled = borders[:-1], borders.diff() > 0
    previous = F.pad(x[0, :-1], (0, 0, 1, 0))  # [T, D]
    if before is None:
        first = torch.zeros(x.shape[1] + 1, dtype=torch.bool, device=x.device).index_fill(0, starts, True)
        previous = previous.masked_fill(first[:-1, None], 0)
    else:
        previous = previous.index_copy(0, starts[filled], before[filled])
    delta = (previous - x[0]).unsqueeze(0)
    if not output_cache:
        return delta
    last = x[0, (borders[1:] - 1).clamp(min=0)]
    empty = torch.zeros_like(last) if before is None else before
    return delta, torch.where(filled[:, None], last, empty)
