"""Attention with forget gates against the loop over queries that defines it and fla's reference."""

from typing import Any

import pytest
import torch
from fla.ops.attn.naive import naive_attn_decoding, naive_parallel_attn
from torch import Tensor
from torch.nn.functional import logsigmoid

from flame.ops import rows
from flame.ops.forgetting import attn_decoding_one_step, forgetting_by_token, parallel_attn, parallel_forgetting_attn
from tests.unit.ops.agreement import worst_error
from tests.unit.ops.packing import BORDERS, apart

TIGHT = 3e-6


def some(length: int, rows: int = 2, width: int = 32, strength: float = 1.0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (rows, length, 4, width), "k": (rows, length, 2, width), "v": (rows, length, 2, 16)}
    x = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return x | {"g": logsigmoid(torch.randn(rows, length, 4, generator=generator)) * strength}


@pytest.mark.parametrize("length", [17, 64, 130])
@pytest.mark.parametrize("window", [None, 9])
def test_forgetting_attention_agrees_with_the_definition(length, window):
    def fast(**x: Any) -> Tensor:
        return parallel_forgetting_attn(**x, window_size=window)

    def slow(**x: Any) -> Tensor:
        return forgetting_by_token(**x, window=window)

    assert worst_error(fast, slow, some(length)) < TIGHT


@pytest.mark.parametrize("strength", [40.0, 1000.0])
def test_gates_that_forget_at_once_stay_finite(strength):
    assert worst_error(parallel_forgetting_attn, forgetting_by_token, some(200, strength=strength)) < 1e-5


def test_a_reset_between_long_memories_keeps_precision():
    x = some(130)
    x["g"] = x["g"] * 1e-3
    x["g"][:, 64] = -5000
    assert worst_error(parallel_forgetting_attn, forgetting_by_token, x) < TIGHT


@pytest.mark.parametrize("gated", [True, False])
def test_a_sink_takes_weight_away(gated):
    x = some(70) | {"sink_bias": torch.randn(4)}
    if not gated:
        del x["g"]

    def slow(**x: Any) -> Tensor:
        return forgetting_by_token(x.pop("q"), x.pop("k"), x.pop("v"), x.pop("g", None), **x)

    assert worst_error(parallel_attn, slow, x) < TIGHT


def test_packed_documents_do_not_see_each_other():
    def fast(**x: Any) -> Tensor:
        return parallel_attn(**x, cu_seqlens=torch.tensor(BORDERS))

    assert worst_error(fast, apart(forgetting_by_token, BORDERS), some(BORDERS[-1], rows=1)) < TIGHT


def test_scores_computed_again_give_the_same(monkeypatch):
    monkeypatch.setattr(rows, "HELD", 0)
    assert worst_error(parallel_forgetting_attn, forgetting_by_token, some(300)) < TIGHT


@pytest.mark.parametrize("window", [None, 9])
def test_agrees_with_flas_reference(window):
    x, sink = some(50), torch.randn(4)
    expected, _ = naive_parallel_attn(**x, window_size=window, sink_bias=sink)
    torch.testing.assert_close(parallel_attn(**x, window_size=window, sink_bias=sink), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 0, 5])
@pytest.mark.parametrize("scaled", [True, False])
def test_one_step_agrees_with_flas_reference(window, scaled):
    borders, x = torch.tensor(BORDERS), some(BORDERS[-1], rows=1)
    x["q"] = torch.randn(1, len(BORDERS) - 1, 4, 32)
    options: dict[str, Any] = {
        "cu_seqlens": borders,
        "do_gate_scale": scaled,
        "window_size": window,
        "sink_bias": torch.randn(4),
    }
    found = attn_decoding_one_step(**x, **options)
    torch.testing.assert_close(found, naive_attn_decoding(**x, **options), rtol=1e-5, atol=1e-5)


def test_one_step_continues_the_parallel_pass():
    x = some(40, rows=1)
    whole = parallel_forgetting_attn(**x)
    step = attn_decoding_one_step(x["q"][:, -1:], x["k"], x["v"], x["g"], cu_seqlens=torch.tensor([0, 40]))
    torch.testing.assert_close(step, whole[:, -1:], rtol=1e-5, atol=1e-5)


def test_bfloat16_is_as_accurate_as_its_own_rounding():
    assert worst_error(parallel_forgetting_attn, forgetting_by_token, some(64), torch.bfloat16) < 0.03


def test_a_compiled_caller_gets_the_same():
    x = some(24)
    compiled = torch.compile(lambda **x: parallel_forgetting_attn(**x) * 2, backend="eager")
    torch.testing.assert_close(compiled(**x), parallel_forgetting_attn(**x) * 2)


def test_what_does_not_fit_is_refused():
    x = some(4)
    with pytest.raises(ValueError, match="heads"):
        parallel_attn(x["q"][:, :, :3], x["k"], x["v"])
    with pytest.raises(ValueError, match="sink_bias"):
        parallel_attn(**x, sink_bias=torch.ones(3))
    with pytest.raises(ValueError, match="cu_seqlens"):
        attn_decoding_one_step(x["q"], x["k"], x["v"])
    with pytest.raises(ValueError, match="window_size=-1"):
        attn_decoding_one_step(x["q"], x["k"], x["v"], cu_seqlens=torch.tensor([0, 4]), window_size=-1)
