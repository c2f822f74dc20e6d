"""Which dtype a statistic or a pointwise chain is computed in."""

import torch
from torch import Tensor


def precision(x: Tensor) -> torch.dtype:
    """The dtype of states and inverses: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where it has at least that much precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
