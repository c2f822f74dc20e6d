"""Which dtype a statistic or a pointwise chain is computed in."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where it has at least that much precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
