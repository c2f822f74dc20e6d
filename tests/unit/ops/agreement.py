"""Compares an operator with the token loop that defines it: outputs, final states and every gradient."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Outputs = Tensor | Iterable["Outputs"] | None


def worst_error(
    fast: Callable[..., Any],
    slow: Callable[..., Any],
    inputs: dict[str, Tensor],
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> float:
    """The largest relative error (of norms) of ``fast`` in ``dtype`` against ``slow`` in float64, over outputs and
    gradients.
    """
    expected = _results(slow, inputs, torch.float64, options)
    found = _results(fast, inputs, dtype, options)
    assert len(expected) == len(found)
    return max(_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def _results(
    function: Callable[..., Any], inputs: dict[str, Tensor], dtype: torch.dtype, options: dict[str, Any]
) -> list[Tensor]:
    leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs.items()}
    outputs = list(_flat(function(**leaves, **options)))
    generator = torch.Generator().manual_seed(7)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum() for y in outputs)
    assert isinstance(loss, Tensor)
    loss.backward()
    missing = [name for name, x in leaves.items() if x.grad is None]
    assert not missing, f"no gradient reaches {missing}"
    return outputs + [x.grad for x in leaves.values() if x.grad is not None]


def _flat(outputs: Outputs) -> Iterable[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif outputs is not None:
        for output in outputs:
            yield from _flat(output)


def _error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert bool(found.isfinite().all())
    difference = (found.double() - expected.double()).norm()
    return float((difference / expected.double().norm().clamp_min(1e-6)).detach())
