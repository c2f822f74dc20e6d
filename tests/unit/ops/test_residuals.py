import pytest
import torch
from fla.ops.attnres.naive import naive_attnres
from torch.nn import functional as F

from flame.ops.residuals import fused_attnres
from tests.unit.ops.agreement import worst_error


def definition(query, weight, out=None, scale=1.0, **sources):
    values = torch.stack(list(sources.values()))  # [L, ..., D]
    keys = F.rms_norm(values, values.shape[-1:], weight, 1e-6)
    weights = (keys @ query.flatten() * scale).softmax(0)
    mixed = (weights.unsqueeze(-1) * values).sum(0)
    return mixed if out is None else F.rms_norm(mixed, mixed.shape[-1:], out, 1e-6)


def ours(query, weight, out=None, scale=1.0, **sources):
    return fused_attnres(query, list(sources.values()), weight, out, scale=scale)


def tensors(count, with_norm):
    found = {"query": torch.randn(16), "weight": torch.randn(16)} | ({"out": torch.randn(16)} if with_norm else {})
    return found | {f"source{number}": torch.randn(2, 5, 16) for number in range(count)}


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("with_norm", [False, True])
def test_the_mixture_is_a_softmax_over_sources(count, with_norm):
    found = tensors(count, with_norm)
    # One source has weight one whatever the query: the gradients of query and norm are then zero but for rounding.
    if count > 1:
        assert worst_error(ours, definition, found, scale=0.5) < 2e-6
        assert worst_error(ours, definition, found, torch.bfloat16, scale=0.5) < 3e-2
    assert worst_error(ours, definition, found, torch.float64) < 1e-9


def test_the_weights_come_along_without_gradient():
    found = tensors(3, True)
    query, weight, out, *sources = found.values()
    mixed, weights = fused_attnres(query.requires_grad_(), sources, weight, out, return_weights=True)
    expected, expected_weights = naive_attnres(query, sources, weight, out, return_weights=True)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(weights, expected_weights)
    assert mixed.requires_grad and not weights.requires_grad


def test_a_source_of_zeros_has_a_finite_gradient():
    source = torch.zeros(2, 16, requires_grad=True)
    mixed = fused_attnres(torch.randn(16), [source, torch.randn(2, 16)], torch.ones(16))
    torch.as_tensor(mixed).sum().backward()
    assert source.grad is not None and bool(source.grad.isfinite().all())


def test_no_source_and_unknown_levels_are_refused():
    with pytest.raises(ValueError, match="at least one source"):
        fused_attnres(torch.randn(4), [], torch.ones(4))
    with pytest.raises(ValueError, match="checkpoint_level=2"):
        fused_attnres(torch.randn(4), [torch.randn(2, 4)], torch.ones(4), checkpoint_level=2)
