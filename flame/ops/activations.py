"""Pointwise activations and gated linear units."""

import torch
import torch.nn.functional as F
from torch import Tensor

from flame.ops.precision import wide


def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + exp(-x))``."""
    return x.sigmoid()


def elu_p1(x: Tensor) -> Tensor:
    """``elu(x) + 1``: ``x + 1`` above zero, ``exp(x)`` below."""
    return torch.where(x >= 0, x + 1, x.clamp_max(0).exp())


def logsigmoid(x: Tensor, temperature: float = 1.0) -> Tensor:
    """``log(sigmoid(x)) / temperature``."""
    return (F.logsigmoid(wide(x)) / temperature).to(x.dtype) if temperature != 1 else F.logsigmoid(x)


def swish(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``."""
    return F.silu(x)


def fast_gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation (Hendrycks and Gimpel 2016)."""
    return F.gelu(x, approximate="tanh")


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """``fast_gelu(x + bias)``."""
    return F.gelu(x + bias, approximate="tanh").to(x.dtype)


def sqrelu(x: Tensor) -> Tensor:
    """``relu(x)^2`` (So et al. 2021)."""
    return F.relu(x).square()


def swiglu(x: Tensor, y: Tensor) -> Tensor:
    """``silu(x) * y`` (Shazeer 2020)."""
    return F.silu(x) * y


def swiglu_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``swiglu(x, y) W^T + b``."""
    return F.linear(F.silu(x) * y, weight, bias)


def sigmoidglu(x: Tensor, y: Tensor) -> Tensor:
    """``sigmoid(x) * y`` (Dauphin et al. 2017)."""
    return x.sigmoid() * y


def sigmoidglu_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``sigmoidglu(x, y) W^T + b``."""
    return F.linear(x.sigmoid() * y, weight, bias)


def powglu(x: Tensor, y: Tensor, power: float = 3.0) -> Tensor:
    """``g(x) * y`` with the power linear unit ``g`` (arXiv:2605.25704).

    ``g(x) = x^(power / (sqrt(x) + 1)) sigmoid(x)`` above zero, where it grows slower than swish; ``silu(x)`` below.
    """
    values = wide(x)
    above = values > 0
    positive = values.where(above, 1)  # the logarithm has no gradient to give elsewhere
    grown = (power / (positive.sqrt() + 1) * positive.log()).exp()
    return (torch.where(above, grown, values) * values.sigmoid() * wide(y)).to(x.dtype)


def powglu_linear(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    power: float = 3.0,
) -> Tensor:
    """``powglu(x, y) W^T + b``."""
    return F.linear(powglu(x, y, power), weight, bias)
