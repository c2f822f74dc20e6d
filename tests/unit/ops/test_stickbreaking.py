"""Stick-breaking attention against the loop over keys that defines it and fla's reference."""

from typing import Any

import pytest
import torch
from fla.ops.stickbreaking_attn.naive import naive_stickbreaking_attn

from flame.ops import rows
from flame.ops.stickbreaking import parallel_stickbreaking_attn, stickbreaking_by_token, stickbreaking_decode
from tests.unit.ops.agreement import worst_error
from tests.unit.ops.packing import apart

TIGHT = 3e-6
BORDERS = [0, 1, 18, 18, 83, 90]


def some(length: int, rows: int = 2, width: int = 32, strength: float = 1.0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (rows, length, 4, width), "k": (rows, length, 2, width), "v": (rows, length, 2, 16)}
    x = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return x | {"q": x["q"] * strength}


@pytest.mark.parametrize("length", [17, 65])
@pytest.mark.parametrize("current", [True, False])
def test_agrees_with_the_definition(length, current):
    assert (
        worst_error(parallel_stickbreaking_attn, stickbreaking_by_token, some(length), attend_current=current) < TIGHT
    )


def test_blocks_of_queries_agree_with_flas_reference(monkeypatch):
    monkeypatch.setattr(rows, "HELD", 0)
    assert worst_error(parallel_stickbreaking_attn, naive_stickbreaking_attn, some(300)) < TIGHT


def test_scores_that_break_the_whole_stick_stay_finite():
    assert worst_error(parallel_stickbreaking_attn, stickbreaking_by_token, some(40, strength=300.0)) < 1e-4


def test_the_first_query_leaves_its_stick_whole():
    o, left = parallel_stickbreaking_attn(**some(5))
    assert not o[:, 0].any() and bool((left[:, 0] == 1).all())


def test_packed_documents_do_not_see_each_other():
    def fast(**x: Any) -> Any:
        return parallel_stickbreaking_attn(**x, cu_seqlens=torch.tensor(BORDERS))

    assert worst_error(fast, apart(stickbreaking_by_token, BORDERS), some(BORDERS[-1], rows=1)) < TIGHT


@pytest.mark.parametrize("current", [True, False])
def test_decoding_continues_the_parallel_pass(current):
    x = some(30)
    whole = parallel_stickbreaking_attn(**x, attend_current=current)
    for count in (1, 3):
        steps = stickbreaking_decode(x["q"][:, -count:], x["k"], x["v"], attend_current=current)
        for step, expected in zip(steps, whole, strict=True):
            torch.testing.assert_close(step, expected[:, -count:])


def test_bfloat16_is_as_accurate_as_its_own_rounding():
    assert worst_error(parallel_stickbreaking_attn, stickbreaking_by_token, some(40), torch.bfloat16) < 0.02


def test_a_longer_cache_is_refused():
    x = some(6)
    with pytest.raises(ValueError, match="stickbreaking_decode"):
        parallel_stickbreaking_attn(x["q"][:, -1:], x["k"], x["v"])
