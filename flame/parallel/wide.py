"""What a unit computes over all its heads at once, when it runs on a share of them: norms over the full width, and
decays that depend on a head's number.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from flame.parallel.sums import SummedBoth


class Part(Protocol):
    """Which share of a unit this rank runs."""

    group: dist.ProcessGroup
    rank: int
    size: int


_parts: list[Part] = []


@contextmanager
def share_context(part: Part) -> Iterator[None]:
    """Within it, norms over the full width take the mean over the shares of all ranks; contexts nest."""
    _parts.append(part)
    try:
        yield
    finally:
        _parts.pop()


def wide_rms_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Root-mean-square norm of [..., D], where this rank has D / size of the channels; in the dtype of ``x``."""
    values, width = x.float(), x.shape[-1]
    squares = values.square().sum(-1, keepdim=True)
    for part in _parts:
        squares, width = SummedBoth.apply(squares, part.group), width * part.size
    values = values * torch.rsqrt(squares / width + eps)
    if weight is not None:
        values = values * weight.float()
    if bias is not None:
        values = values + bias.float()
    return values.to(x.dtype)


def widen(module: nn.Module, name: str) -> None:
    """Makes the norm ``name`` of a unit one over the full width, whichever way the unit calls it."""
    norm: Any = module.get_submodule(name)
    activation = F.silu if getattr(norm, "activation", "swish") in ("swish", "silu") else torch.sigmoid

    def normalised(x: Tensor, g: Tensor | None = None, **_: Any) -> Tensor:
        gate = None if g is None else activation(g.float())
        if gate is not None and not getattr(norm, "norm_before_gate", True):  # Mamba2
            x, gate = (x.float() * gate).to(x.dtype), None
        output = wide_rms_norm(x, norm.weight, getattr(norm, "bias", None), norm.eps)
        return output if gate is None else (output.float() * gate).to(x.dtype)

    norm.forward = normalised


def sum_output(linear: nn.Module) -> None:
    """Makes a linear layer of a unit, which reads all channels, add up what the shares give it."""
    forward = linear.forward
    if hasattr(forward, "_sums"):  # shared by two groups of ranks, it looks at both
        return

    def summed(x: Tensor) -> Tensor:
        output = forward(x)
        for part in _parts:
            output = SummedBoth.apply(output, part.group)
        return output

    summed._sums = True  # type: ignore[attr-defined]
    linear.forward = summed  # type: ignore[method-assign]


def adapt(module: nn.Module) -> None:
    """Rebinds the functions that a unit's file calls, so that they look at the share under way."""
    holder = importlib.import_module(type(module).__module__)
    for name, wide in _WIDE_FUNCTIONS.items():
        usual = vars(holder).get(name)
        if usual is not None and not hasattr(usual, "_on_shares"):
            setattr(holder, name, _on_shares(usual, wide))


def _on_shares(usual: Callable[..., Any], wide: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(usual)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        return wide(usual, *args, **kwargs) if _parts else usual(*args, **kwargs)

    chosen._on_shares = True  # type: ignore[attr-defined]
    return chosen


def _rms_norm_linear(
    usual: Any, x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor, offset: Tensor | None, eps: float = 1e-5
) -> Tensor:
    return F.linear(wide_rms_norm(x, weight, bias, eps), matrix.to(x.dtype), offset)


def _rms_norm_swish_gate_linear(
    usual: Any,
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    matrix: Tensor,
    offset: Tensor | None,
    eps: float = 1e-6,
) -> Tensor:
    output = (wide_rms_norm(x, weight, bias, eps).float() * F.silu(g.float())).to(x.dtype)
    return F.linear(output, matrix.to(x.dtype), offset)


def _retention(
    usual: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """RetNet's head number h decays by ``1 - 2^(-5 - h)``, and this rank's heads are not the first."""
    heads = q.shape[2]
    first, size = 0, heads
    for part in reversed(_parts):
        first, size = first + part.rank * size, size * part.size
    numbers = torch.arange(first, first + heads, dtype=torch.float, device=q.device)
    decay = (1 - 2.0 ** (-5.0 - numbers)).log()  # with the rounding that fla's own function has
    chunk: Any = importlib.import_module("fla.ops.simple_gla").chunk_simple_gla
    return chunk(
        q,
        k,
        v,
        g_gamma=decay,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


_WIDE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rms_norm_linear": _rms_norm_linear,
    "rms_norm_swish_gate_linear": _rms_norm_swish_gate_linear,
    "chunk_retention": _retention,
    "fused_chunk_retention": _retention,
    "fused_recurrent_retention": _retention,
    "parallel_retention": _retention,
}
