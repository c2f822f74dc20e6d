"""DeltaFormer attention against the token loop that defines it and fla's reference."""

from typing import Any

import pytest
import torch
from fla.ops.deltaformer.naive import naive_deltaformer_attn
from torch import Tensor

from flame.ops import rows
from flame.ops.deltaformer import deltaformer_attn, deltaformer_by_token
from tests.unit.ops.agreement import worst_error
from tests.unit.ops.packing import BORDERS, apart

TIGHT = 5e-6


def some(length: int, rows: int = 2, width: int = 32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = {name: torch.randn(rows, length, 3, width, generator=generator) for name in ("q", "k", "v")}
    return x | {"beta": torch.randn(rows, length, 3, generator=generator)}


@pytest.mark.parametrize("length", [17, 64, 130])
def test_agrees_with_the_definition(length):
    assert worst_error(deltaformer_attn, deltaformer_by_token, some(length)) < TIGHT


@pytest.mark.parametrize("taken", [True, False])
def test_agrees_with_flas_reference(taken):
    x = some(70)
    if not taken:
        del x["beta"]
    torch.testing.assert_close(deltaformer_attn(**x), naive_deltaformer_attn(**x), rtol=1e-4, atol=1e-5)


def test_steps_computed_again_give_the_same(monkeypatch):
    monkeypatch.setattr(rows, "HELD", 0)
    assert worst_error(deltaformer_attn, deltaformer_by_token, some(300)) < TIGHT


def test_packed_documents_do_not_see_each_other():
    def fast(**x: Any) -> Tensor:
        return deltaformer_attn(**x, cu_seqlens=torch.tensor(BORDERS))

    assert worst_error(fast, apart(deltaformer_by_token, BORDERS), some(BORDERS[-1], rows=1)) < TIGHT


def test_padding_on_the_right_is_neither_read_nor_written():
    x = some(140)
    mask = torch.ones(2, 140)
    mask[1, 100:] = 0
    found = deltaformer_attn(**x, attention_mask=mask)
    torch.testing.assert_close(found[0], deltaformer_attn(**x)[0])
    torch.testing.assert_close(found[1:, :100], deltaformer_attn(**{name: y[1:, :100] for name, y in x.items()}))
    assert not found[1, 100:].any()


def test_padding_on_the_left_is_not_read():
    x = some(20)
    mask = torch.ones(2, 20)
    mask[1, :6] = 0
    found = deltaformer_attn(**x, attention_mask=mask)
    assert bool(found.isfinite().all()) and not found[1, :6].any()
    assert not torch.allclose(found[1, 6:], deltaformer_attn(**x)[1, 6:])


def test_bfloat16_is_as_accurate_as_its_own_rounding():
    assert worst_error(deltaformer_attn, deltaformer_by_token, some(64), torch.bfloat16) < 0.02


def test_shared_keys_are_refused():
    x = some(4)
    with pytest.raises(ValueError, match="as many heads"):
        deltaformer_attn(x["q"], x["k"][:, :, :1], x["v"])
