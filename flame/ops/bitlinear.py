"""Linear layers of ternary weights and 8-bit activations (Ma et al. 2024, arXiv:2402.17764)."""

from torch import Tensor

from flame.ops.norms import normalised, projected, with_residual


def layer_norm_linear_quant(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalises, rounds activations to 8 bits per token and weights to {-1, 0, 1} per tensor, and projects.

    Gradients pass the rounding as if it were not there.

    Args:
        x: [..., D].
        norm_weight, norm_bias: [D] or None.
        linear_weight: [O, D], of full precision.
        linear_bias: [O] or None.
        residual, eps, prenorm, residual_in_fp32, is_rms_norm: as in ``group_norm``.

    Returns:
        [..., O], and the residual stream where ``prenorm`` asks for it.
    """
    total, stream = with_residual(x, residual, residual_in_fp32)
    y = normalised(total, norm_weight, norm_bias, eps, is_rms_norm)
    y = _straight_through(y, _to_bytes(y.detach())).to(x.dtype)
    weight = _straight_through(linear_weight, _to_ternary(linear_weight.detach()))
    y = projected(y, weight, linear_bias)
    return (y, stream) if prenorm else y


def rms_norm_linear_quant(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``layer_norm_linear_quant`` with an RMS norm."""
    return layer_norm_linear_quant(
        x, norm_weight, norm_bias, linear_weight, linear_bias, residual, eps, prenorm, residual_in_fp32, True
    )


def bit_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """``layer_norm_linear_quant`` with an RMS norm and no residual."""
    y = layer_norm_linear_quant(x, norm_weight, norm_bias, weight, bias, eps=eps, is_rms_norm=True)
    assert isinstance(y, Tensor)
    return y


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    return rounded + (x - x.detach())


def _to_bytes(x: Tensor) -> Tensor:
    """Each token rounded to 255 levels of its largest value; halves go away from zero."""
    scale = 127.0 / x.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    levels = x * scale
    return (levels + levels.sign() * 0.5).trunc_().clamp_(-128, 127) / scale


def _to_ternary(weight: Tensor) -> Tensor:
    """-1, 0 or 1 times the mean magnitude."""
    scale = 1.0 / weight.abs().mean().clamp_min(1e-5)
    return (weight * scale).round_().clamp_(-1, 1) / scale
