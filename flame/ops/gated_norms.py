"""Normalisation followed (or preceded) by an output gate."""

from torch import Tensor

from flame.ops.norms import gate_of, normalised, projected, with_residual
from flame.ops.precision import wide


def layer_norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str = "swish",
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Tensor | tuple[Tensor, Tensor]:
    """``layer_norm(x + residual) * act(g)``; see ``rms_norm_gated``."""
    return _gated(x, g, weight, bias, activation, residual, prenorm, residual_in_fp32, eps, False)


def rms_norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str = "swish",
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Tensor | tuple[Tensor, Tensor]:
    """``rms_norm(x + residual) * act(g)``.

    Args:
        x, g: [..., D], the values and the gate before its activation.
        weight, bias: [D] or None, of the norm.
        activation: ``swish`` (``silu``) or ``sigmoid``.
        residual, prenorm, residual_in_fp32, eps: as in ``group_norm``.

    Raises:
        ValueError: another activation, or a residual of another shape.
    """
    return _gated(x, g, weight, bias, activation, residual, prenorm, residual_in_fp32, eps, True)


def _gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    prenorm: bool,
    residual_in_fp32: bool,
    eps: float,
    is_rms_norm: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    total, stream = with_residual(x, residual, residual_in_fp32)
    gate = g.reshape(x.shape)
    y = normalised(total, weight, bias, eps, is_rms_norm, gate=gate, activation=activation).to(x.dtype)
    return (y, stream) if prenorm else y


def layer_norm_swish_gate_linear(
    x: Tensor,
    g: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Tensor | tuple[Tensor, Tensor]:
    """``layer_norm_gated`` with swish, followed by a projection."""
    total, stream = with_residual(x, residual, residual_in_fp32)
    y = normalised(total, norm_weight, norm_bias, eps, False, gate=g.reshape(x.shape)).to(x.dtype)
    y = projected(y, linear_weight, linear_bias)
    return (y, stream) if prenorm else y


def rms_norm_swish_gate_linear(
    x: Tensor,
    g: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Tensor | tuple[Tensor, Tensor]:
    """``rms_norm_gated`` with swish, followed by a projection."""
    total, stream = with_residual(x, residual, residual_in_fp32)
    y = normalised(total, norm_weight, norm_bias, eps, True, gate=g.reshape(x.shape)).to(x.dtype)
    y = projected(y, linear_weight, linear_bias)
    return (y, stream) if prenorm else y


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """The norm of Mamba-2 (Dao and Gu 2024): ``norm(x) * silu(z)``, or ``norm(x * silu(z))``.

    Args:
        x, z: [..., D]; no gate where ``z`` is None.
        weight, bias: [D]; ``bias`` may be None.
        eps: added to the variance.
        group_size: channels per group; None makes one group.
        norm_before_gate: False gates before the norm.
        is_rms_norm: no mean is subtracted.

    Raises:
        ValueError: the group size does not divide D.
    """
    size = group_size or x.shape[-1]
    if x.shape[-1] % size:
        raise ValueError(f"{x.shape[-1]} channels do not divide into groups of {size}")
    values, gate = x, z
    if z is not None and not norm_before_gate:
        values, gate = wide(x) * gate_of(wide(z), "silu"), None
    return normalised(values, weight, bias, eps, is_rms_norm, x.shape[-1] // size, gate).to(x.dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """``layernorm_fn`` without the mean."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True)
