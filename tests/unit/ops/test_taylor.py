"""Based and ReBased against the loop over queries that defines them and fla's references."""

from typing import Any

import pytest
import torch
from fla.ops.based.naive import naive_parallel_based
from fla.ops.rebased.naive import naive_parallel_rebased
from torch import Tensor

from flame.ops.taylor import exponential, parallel_based, parallel_rebased, polynomial_by_token
from tests.unit.ops.agreement import worst_error


def some(length: int, width: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"q": width, "k": width, "v": 32}
    return {name: torch.randn(2, length, 3, size, generator=generator) for name, size in sizes.items()}


@pytest.mark.parametrize("length", [17, 64, 130])
def test_based_agrees_with_the_definition(length):
    def slow(**x: Any) -> Tensor:
        o, z = polynomial_by_token(**x, scale=0.25, weight=exponential)
        return o / (z + 1e-6)

    assert worst_error(parallel_based, slow, some(length)) < 3e-6


@pytest.mark.parametrize("length", [17, 64, 130])
def test_rebased_agrees_with_the_definition(length):
    def slow(**x: Any) -> Tensor:
        o, z = polynomial_by_token(**x, scale=0.25, weight=torch.square)
        return o / (z + 1e-5)

    assert worst_error(parallel_rebased, slow, some(length)) < 1e-5


@pytest.mark.parametrize("use_norm", [True, False])
def test_both_agree_with_flas_references(use_norm):
    x = some(50)
    heads_first = [y.transpose(1, 2) for y in x.values()]
    expected = naive_parallel_based(*heads_first, use_norm=use_norm).transpose(1, 2)
    torch.testing.assert_close(parallel_based(**x, use_norm=use_norm), expected, rtol=1e-4, atol=1e-4)
    expected = naive_parallel_rebased(*heads_first, use_norm=use_norm).transpose(1, 2)
    found = parallel_rebased(**x, eps=1e-6, use_normalize=use_norm)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_rebased_returns_sums_apart():
    x = some(20)
    both = parallel_rebased(**x, use_scale=False, return_both=True)
    o, z = both
    expected = parallel_rebased(**x, use_scale=False)
    assert o.shape == (2, 3, 20, 32) and z.shape == (2, 3, 20)
    torch.testing.assert_close((o / (z[..., None] + 1e-5)).transpose(1, 2), expected)
