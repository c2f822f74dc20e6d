"""Parallax attention against the loop over queries that defines it and fla's reference."""

from typing import Any

import pytest
import torch
from fla.ops.parallax.naive import naive_parallax
from torch import Tensor

from flame.ops.parallax import parallax_by_token, parallax_decode, parallax_decode_one_step, parallel_parallax
from tests.unit.ops.agreement import worst_error
from tests.unit.ops.packing import BORDERS, apart

TIGHT = 3e-6


def some(length: int, rows: int = 2, width: int = 32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    heads = {"q": 4, "r": 4, "k": 2, "v": 2}
    return {name: torch.randn(rows, length, count, width, generator=generator) for name, count in heads.items()}


@pytest.mark.parametrize("length", [17, 64, 130])
@pytest.mark.parametrize("window", [None, 9])
def test_agrees_with_the_definition(length, window):
    def fast(**x: Any) -> Tensor:
        return parallel_parallax(**x, window_size=window)

    def slow(**x: Any) -> Tensor:
        return parallax_by_token(**x, window=window)

    assert worst_error(fast, slow, some(length)) < TIGHT


@pytest.mark.parametrize("window", [None, 9])
def test_agrees_with_flas_reference(window):
    x = some(50)
    expected = naive_parallax(**x, window_size=window)
    torch.testing.assert_close(parallel_parallax(**x, window_size=window), expected, rtol=1e-4, atol=1e-4)


def test_packed_documents_do_not_see_each_other():
    def fast(**x: Any) -> Tensor:
        return parallel_parallax(**x, cu_seqlens=torch.tensor(BORDERS))

    assert worst_error(fast, apart(parallax_by_token, BORDERS), some(BORDERS[-1], rows=1)) < TIGHT


@pytest.mark.parametrize("window", [None, 9])
def test_decoding_continues_the_parallel_pass(window):
    x = some(30)
    whole = parallel_parallax(**x, window_size=window)
    for count, decode in ((1, parallax_decode_one_step), (5, parallax_decode)):
        step = decode(x["q"][:, -count:], x["r"][:, -count:], x["k"], x["v"], window_size=window)
        torch.testing.assert_close(step, whole[:, -count:], rtol=1e-4, atol=1e-5)


def test_padding_on_the_left_is_not_seen():
    x = some(12)
    found = parallax_decode(**x, cache_start=torch.tensor([0, 5]))
    torch.testing.assert_close(found[1:, 5:], parallel_parallax(**{name: y[1:, 5:] for name, y in x.items()}))
    torch.testing.assert_close(found[:1], parallel_parallax(**{name: y[:1] for name, y in x.items()}))
    assert not found[1, :5].any()


def test_bfloat16_is_as_accurate_as_its_own_rounding():
    assert worst_error(parallel_parallax, parallax_by_token, some(64), torch.bfloat16) < 0.02


def test_more_queries_than_a_step_takes_are_refused():
    with pytest.raises(ValueError, match="parallax_decode"):
        parallax_decode_one_step(**some(3))
