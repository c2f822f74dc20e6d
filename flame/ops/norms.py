"""Layer, RMS, group and L2 normalisation, with the residual stream and the projection that fla fuses into them.

Statistics are taken in float32 (float64 for float64), the result has the dtype of the input.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flame.ops.precision import wide

SWISH = ("swish", "silu")
GATES = (*SWISH, "sigmoid")


class GatedRootMeanSquare(torch.autograd.Function):
    """``x / sqrt(sum(x^2) / count + eps) * weight * act(gate)`` over the last dimension, wide inside.

    One node that keeps only its inputs and one number per row: a chain of plain operations takes twice the time on a
    CPU and keeps several tensors of the size of ``x``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        gate: Tensor | None,
        eps: float,
        count: int,
        activation: str,
    ) -> Tensor:
        """Returns the wide result; the caller casts it."""
        values = wide(x)
        norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)  # [..., 1]
        scale = norm.square_().div_(count).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, gate, scale)
        ctx.count, ctx.activation = count, activation
        ctx.weight_dtype = None if weight is None else weight.dtype
        y = values * scale
        if weight is not None:
            y *= wide(weight)
        if gate is not None:
            y *= gate_of(wide(gate), activation)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of ``x``, ``weight`` and ``gate``."""
        x, weight, gate, scale = ctx.saved_tensors
        unit = wide(x) * scale  # [..., D] the normalised rows
        w = None if weight is None else wide(weight)
        product = dy * unit
        dgate = dweight = None
        if gate is not None:
            z = wide(gate)
            opened = gate_of(z, ctx.activation)
            dgate = _gate_gradient(product if w is None else product * w, z, ctx.activation).to(gate.dtype)
            product *= opened
            dy = opened.mul_(dy)
        if w is None:
            along = product.sum(-1, keepdim=True)
        else:
            rows = tuple(range(product.dim() - w.dim()))  # a weight per group, [G, D / G], leaves two dimensions
            dweight = (product.sum(rows) if rows else product).to(ctx.weight_dtype)
            along = (product @ w).unsqueeze(-1) if w.dim() == 1 else (product * w).sum(-1, keepdim=True)
            dy = dy * w
        # In place from here on: a fresh tensor of this size costs a CPU as much as the product written to it.
        dx = torch.sub(dy, unit.mul_(along / ctx.count)).mul_(scale)
        return dx.to(x.dtype), dweight, dgate, None, None, None


def gate_of(z: Tensor, activation: str) -> Tensor:
    """``silu(z)`` or ``sigmoid(z)``.

    Raises:
        ValueError: ``activation`` is none of ``swish``, ``silu`` and ``sigmoid``.
    """
    if activation not in GATES:
        raise ValueError(f"activation '{activation}' of a gated norm is none of {', '.join(GATES)}")
    return F.silu(z) if activation in SWISH else z.sigmoid()


def _gate_gradient(dy: Tensor, z: Tensor, activation: str) -> Tensor:
    if activation in SWISH:
        return torch.ops.aten.silu_backward(dy, z)
    return torch.ops.aten.sigmoid_backward(dy, z.sigmoid())


def normalised(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    is_rms_norm: bool,
    num_groups: int = 1,
    gate: Tensor | None = None,
    activation: str = "swish",
) -> Tensor:
    """The wide normalisation of ``x`` [..., D] in ``num_groups`` equal parts of the last dimension, gated at the end.

    Raises:
        ValueError: the groups do not divide the last dimension, or the activation is unknown.
    """
    if x.shape[-1] % num_groups:
        raise ValueError(f"{x.shape[-1]} channels do not divide into {num_groups} groups")
    shape, size = x.shape, x.shape[-1] // num_groups
    if num_groups > 1:
        split = (num_groups, size)
        x = x.unflatten(-1, split)  # [..., G, D / G]
        weight, bias, gate = (None if part is None else part.unflatten(-1, split) for part in (weight, bias, gate))
    if is_rms_norm and bias is None:
        return GatedRootMeanSquare.apply(x, weight, gate, eps, size, activation).reshape(shape)
    if is_rms_norm:
        y = GatedRootMeanSquare.apply(x, weight, None, eps, size, activation)
    elif weight is not None and weight.dim() > 1:
        y = F.layer_norm(wide(x), (size,), None, None, eps) * wide(weight)
    else:
        # The bias of a group is added below, like that of an RMS norm.
        y = F.layer_norm(wide(x), (size,), None if weight is None else wide(weight), None, eps)
    if bias is not None:
        y = y + wide(bias)
    if gate is not None:
        y = y * gate_of(wide(gate), activation)
    return y.reshape(shape)


def with_residual(x: Tensor, residual: Tensor | None, residual_in_fp32: bool) -> tuple[Tensor, Tensor]:
    """What is normalised, and the residual stream that goes on: ``x + residual``, in the dtype of ``residual``.

    Raises:
        ValueError: the shapes differ.
    """
    if residual is None:
        return x, x.float() if residual_in_fp32 and x.dtype != torch.float32 else x
    if residual.shape != x.shape:
        raise ValueError(f"the residual {tuple(residual.shape)} has not the shape of x {tuple(x.shape)}")
    total = wide(x) + wide(residual)
    return total, total.to(residual.dtype)


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Layer normalisation (Ba et al. 2016) of ``x + residual`` [..., D]; see ``group_norm``."""
    return group_norm(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm)


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    num_groups: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalises each of ``num_groups`` parts of the last dimension of ``x + residual`` [..., D].

    Args:
        x: [..., D].
        weight, bias: [D] or None.
        residual: [..., D] added before the norm.
        eps: added to the variance.
        prenorm: also return the sum that was normalised, for the next block.
        residual_in_fp32: keep that sum in float32 where no residual came in.
        is_rms_norm: no mean is subtracted (Zhang and Sennrich 2019).
        num_groups: how many parts.

    Raises:
        ValueError: the groups do not divide D, or ``residual`` has another shape.
    """
    total, stream = with_residual(x, residual, residual_in_fp32)
    y = normalised(total, weight, bias, eps, is_rms_norm, num_groups).to(x.dtype)
    return (y, stream) if prenorm else y


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Root-mean-square normalisation of ``x + residual`` [..., D]; see ``group_norm``."""
    return group_norm(x, weight, bias, residual, eps, prenorm, residual_in_fp32, True)


def layer_norm_linear(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    num_groups: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """``group_norm`` followed by a projection to [..., linear_weight.shape[0]]."""
    total, stream = with_residual(x, residual, residual_in_fp32)
    y = normalised(total, norm_weight, norm_bias, eps, is_rms_norm, num_groups).to(x.dtype)
    y = projected(y, linear_weight, linear_bias)
    return (y, stream) if prenorm else y


def rms_norm_linear(
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
    """``rms_norm`` followed by a projection."""
    return layer_norm_linear(
        x, norm_weight, norm_bias, linear_weight, linear_bias, residual, eps, prenorm, residual_in_fp32, True
    )


def group_norm_linear(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    num_groups: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """``group_norm`` followed by a projection; another name of ``layer_norm_linear``."""
    return layer_norm_linear(
        x=x,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        linear_weight=linear_weight,
        linear_bias=linear_bias,
        residual=residual,
        eps=eps,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
        num_groups=num_groups,
    )


def projected(y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``y W^T + b`` in the dtype of ``y``."""
    return F.linear(y, weight.to(y.dtype), None if bias is None else bias.to(y.dtype))


def l2norm(x: Tensor, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> Tensor:
    """``x / sqrt(sum(x^2) + eps)`` over the last dimension, in ``output_dtype`` or that of ``x``."""
    return GatedRootMeanSquare.apply(x, None, None, eps, 1, "swish").to(output_dtype or x.dtype)
