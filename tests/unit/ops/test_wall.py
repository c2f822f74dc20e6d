"""Wall attention against the loop over queries that defines it, and its cache against the parallel pass."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flame.ops import rows
from flame.ops.wall import build_wall_kv_cache, parallel_wall_attn, parallel_wall_attn_decode, wall_by_token
from tests.unit.ops.agreement import worst_error
from tests.unit.ops.packing import BORDERS, apart

TIGHT = 5e-6


def some(length: int, rows: int = 2, width: int = 32, strength: float = 1.0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (rows, length, 4, width), "k": (rows, length, 2, width), "v": (rows, length, 2, 16)}
    x = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return x | {"g": logsigmoid(torch.randn(rows, length, 4, width, generator=generator)) * strength}


def gates(length: int, rows: int = 2) -> dict[str, Any]:
    return {"g_scalar": logsigmoid(torch.randn(rows, length, 4)), "sink_bias": torch.randn(4)}


@pytest.mark.parametrize("length", [17, 64, 130])
@pytest.mark.parametrize("window", [None, 9])
def test_agrees_with_the_definition(length, window):
    def fast(**x: Any) -> Tensor:
        return parallel_wall_attn(**x, window_size=window)

    def slow(**x: Any) -> Tensor:
        return wall_by_token(**x, window=window)

    assert worst_error(fast, slow, some(length) | gates(length)) < TIGHT


@pytest.mark.parametrize("strength", [40.0, 300.0])
def test_channels_that_fade_at_once_stay_finite_beside_slow_ones(strength):
    x = some(200)
    x["g"][..., ::2] *= strength
    assert worst_error(parallel_wall_attn, wall_by_token, x) < 1e-5


def test_scores_computed_again_give_the_same(monkeypatch):
    monkeypatch.setattr(rows, "HELD", 0)
    assert worst_error(parallel_wall_attn, wall_by_token, some(300, strength=0.1)) < TIGHT


def test_packed_documents_do_not_see_each_other():
    def fast(**x: Any) -> Tensor:
        return parallel_wall_attn(**x, cu_seqlens=torch.tensor(BORDERS))

    x = some(BORDERS[-1], rows=1) | gates(BORDERS[-1], rows=1)
    assert worst_error(fast, apart(wall_by_token, BORDERS), x) < TIGHT


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("window", [None, 20])
def test_decoding_against_the_cache_continues_the_parallel_pass(count, window):
    x, extra = some(70, strength=0.2), gates(70)
    whole = parallel_wall_attn(**x, **extra, window_size=window)
    total = x["g"].cumsum(1) / math.log(2)
    keys, starts = build_wall_kv_cache(x["k"], total, 16)
    assert starts.shape == (2, 5, 4, 32)
    o, logs = parallel_wall_attn_decode(
        x["q"][:, -count:], x["v"], total[:, -count:], keys, starts, extra["sink_bias"], 32**-0.5, 16,
        extra["g_scalar"].cumsum(1) / math.log(2), window,
    )  # fmt: skip
    torch.testing.assert_close(o, whole[:, -count:], rtol=1e-4, atol=1e-5)
    assert logs.shape == (2, count, 4) and bool((logs * math.log(2) > extra["sink_bias"] - 1e-5).all())


def test_a_cache_that_cannot_hold_its_decay_gives_finite_outputs():
    x = some(70, strength=100.0)
    total = x["g"].cumsum(1) / math.log(2)
    keys, starts = build_wall_kv_cache(x["k"], total, 64, out_dtype=torch.bfloat16)
    o, _ = parallel_wall_attn_decode(x["q"][:, -1:], x["v"], total[:, -1:], keys * torch.inf, starts, None, 0.2, 64)
    assert keys.dtype == torch.bfloat16 and bool(keys.isfinite().all()) and bool(o.isfinite().all())


def test_bfloat16_is_as_accurate_as_its_own_rounding():
    x = some(64)
    expected = wall_by_token(**x)
    low = {name: y.bfloat16() if name != "g" else y for name, y in x.items()}
    found = parallel_wall_attn(**low)
    assert found.dtype == torch.bfloat16
    assert float((found - expected).norm() / expected.norm()) < 0.01


def test_shapes_that_do_not_fit_are_refused():
    x = some(4)
    with pytest.raises(ValueError, match="give"):
        parallel_wall_attn(**x | {"g": x["g"][..., 0]})
    with pytest.raises(ValueError, match="give"):
        build_wall_kv_cache(x["k"], x["g"][..., 0], 16)
