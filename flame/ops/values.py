"""Tells tensors that only have a shape, whose work is counted, from those with values."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def has_values(x: Tensor) -> bool:
    """False on meta and for fake tensors."""
    return not (x.is_meta or isinstance(x, FakeTensor))


def largest(x: Tensor) -> float:
    """The largest absolute value; 0 for tensors without values, whose work is counted as that of moderate numbers."""
    if not x.numel() or not has_values(x):
        return 0.0
    return float(torch.stack(x.aminmax()).abs().amax())
