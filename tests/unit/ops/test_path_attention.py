"""PaTH attention against the loop that maps all keys token by token, and fla's reference."""

from typing import Any

import pytest
import torch
from fla.ops.path_attn.naive import naive_path_attn
from torch.nn.functional import logsigmoid, normalize

from flame.ops import rows
from flame.ops.forgetting import attn_decoding_one_step
from flame.ops.path_attention import parallel_path_attn, path_by_token
from tests.unit.ops.agreement import worst_error
from tests.unit.ops.packing import BORDERS, apart

TIGHT = 3e-6


def some(length: int, rows: int = 2, width: int = 32, strength: float = 1.0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (rows, length, 4, width), "k": (rows, length, 2, width), "v": (rows, length, 2, 16)}
    x = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    x["w"] = normalize(torch.randn(rows, length, 2, width, generator=generator), dim=-1)
    x["beta"] = 2 * torch.rand(rows, length, 2, generator=generator)
    return x | {"g": logsigmoid(torch.randn(rows, length, 4, generator=generator)) * strength}


def cached(**x: Any) -> Any:
    return parallel_path_attn(**x, use_cache=True)


@pytest.mark.parametrize("length", [17, 64, 130, 300])
def test_outputs_and_cache_agree_with_the_definition(length):
    assert worst_error(cached, path_by_token, some(length)) < TIGHT


def test_steps_computed_again_give_the_same(monkeypatch):
    monkeypatch.setattr(rows, "HELD", 0)
    assert worst_error(cached, path_by_token, some(300)) < TIGHT


def test_gates_that_forget_at_once_stay_finite():
    assert worst_error(cached, path_by_token, some(200, strength=1000.0)) < 1e-4


def test_packed_documents_do_not_see_each_other():
    def fast(**x: Any) -> Any:
        return cached(**x, cu_seqlens=torch.tensor(BORDERS))

    assert worst_error(fast, apart(path_by_token, BORDERS), some(BORDERS[-1], rows=1)) < TIGHT


def test_agrees_with_flas_reference():
    x = some(130)
    o, cache = parallel_path_attn(**x, scale=0.2)
    assert cache is None
    torch.testing.assert_close(o, naive_path_attn(**x, scale=0.2), rtol=1e-4, atol=1e-5)


def test_decoding_against_the_cache_continues_the_parallel_pass():
    x = some(70, rows=1)
    whole, _ = parallel_path_attn(**x)
    past, now = ({name: y[:, cut] for name, y in x.items()} for cut in (slice(0, 69), slice(69, 70)))
    _, keys = cached(**past)
    keys = keys - now["beta"][..., None] * (keys * now["w"]).sum(-1, keepdim=True) * now["w"]
    step = attn_decoding_one_step(now["q"], torch.cat([keys, now["k"]], 1), x["v"], x["g"],
                                  cu_seqlens=torch.tensor([0, 70]), do_gate_scale=True)  # fmt: skip
    torch.testing.assert_close(step, whole[:, -1:], rtol=1e-5, atol=1e-5)


def test_bfloat16_is_as_accurate_as_its_own_rounding():
    assert worst_error(parallel_path_attn, lambda **x: path_by_token(**x)[0], some(64), torch.bfloat16) < 0.05


def test_shapes_that_do_not_fit_are_refused():
    x = some(4)
    with pytest.raises(ValueError, match="do not fit"):
        parallel_path_attn(**x | {"w": x["w"][..., :16]})
