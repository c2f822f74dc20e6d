"""Softmax attention under flash-attn's names against the loop over queries that defines it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flame.ops import attention
from flame.ops.attention import attend, attention_by_token, flash_attn_func, flash_attn_varlen_func
from tests.unit.ops.agreement import worst_error
from tests.unit.ops.packing import BORDERS, apart

TIGHT = 2e-6


def some(queries: int, keys: int | None = None, width: int = 32, values: int = 32, rows: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "q": (rows, queries, 4, width),
        "k": (rows, keys or queries, 2, width),
        "v": (rows, keys or queries, 2, values),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("length", [17, 65, 130])
def test_causal_attention_agrees_with_the_definition(length):
    def fast(**x: Any) -> Tensor:
        return flash_attn_func(**x, causal=True)

    assert worst_error(fast, attention_by_token, some(length)) < TIGHT


@pytest.mark.parametrize(("width", "values"), [(32, 16), (16, 48), (256, 256)])
def test_values_may_be_narrower_or_wider_than_keys(width, values):
    def fast(**x: Any) -> Tensor:
        return flash_attn_func(**x, causal=True)

    assert worst_error(fast, attention_by_token, some(20, width=width, values=values)) < TIGHT


@pytest.mark.parametrize("window", [(1, 0), (7, 0), (300, 0), (5, 3), (-1, 4), (3, -1)])
def test_windows_longer_and_shorter_than_a_block(window, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 16)

    def fast(**x: Any) -> Tensor:
        return flash_attn_func(**x, window_size=window)

    def slow(**x: Any) -> Tensor:
        return attention_by_token(**x, left=window[0], right=window[1])

    assert worst_error(fast, slow, some(50)) < TIGHT


@pytest.mark.parametrize(("queries", "keys"), [(1, 40), (5, 40), (20, 21), (9, 4)])
@pytest.mark.parametrize("left", [-1, 6])
def test_fewer_queries_than_keys_are_the_last_tokens(queries, keys, left):
    x = some(queries, keys)
    found = flash_attn_func(**x, causal=True, window_size=(left, -1))
    torch.testing.assert_close(found, attention_by_token(**x, left=left).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("left", [-1, 9])
def test_packed_documents_do_not_see_each_other(left):
    borders = torch.tensor(BORDERS)

    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        longest = int(borders.diff().max())
        rows = flash_attn_varlen_func(
            q[0], k[0], v[0], borders, borders, longest, longest, causal=True, window_size=(left, 0)
        )
        return rows.unsqueeze(0)

    def slow(**x: Any) -> Tensor:
        return attention_by_token(**x, left=left)

    assert worst_error(fast, apart(slow, BORDERS), some(BORDERS[-1], rows=1)) < TIGHT


@pytest.mark.parametrize("right", [-1, 0, 2])
def test_packed_documents_with_caches_of_their_own_length(right):
    queries, keys = torch.tensor([0, 1, 3, 3, 4, 20]), torch.tensor([0, 30, 37, 40, 41, 60])
    x = {name: value[0] for name, value in some(20, 60, rows=1).items()}
    found = flash_attn_varlen_func(**x, cu_seqlens_q=queries, cu_seqlens_k=keys, max_seqlen_q=16, max_seqlen_k=30,
                                   causal=right == 0, window_size=(-1, right))  # fmt: skip
    for index in range(5):
        own = slice(int(queries[index]), int(queries[index + 1]))
        cache = slice(int(keys[index]), int(keys[index + 1]))
        if own.stop > own.start:
            expected = attention_by_token(*[y.unsqueeze(0) for y in (x["q"][own], x["k"][cache], x["v"][cache])],
                                          right=right)  # fmt: skip
            torch.testing.assert_close(found[own], expected[0].float(), rtol=1e-5, atol=1e-5)


def test_no_mask_over_all_packed_tokens_is_made(monkeypatch):
    largest = 0
    original = attention.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, *rest: Any, **options: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, q.shape[0] * q.shape[2] * k.shape[2])
        return original(q, k, *rest, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    borders = torch.arange(0, 1025, 16)
    x = {name: value[0] for name, value in some(1024, rows=1).items()}
    flash_attn_varlen_func(
        **x, cu_seqlens_q=borders, cu_seqlens_k=borders, max_seqlen_q=16, max_seqlen_k=16, causal=True
    )
    assert largest == 1024 * 16


def test_bfloat16_is_as_accurate_as_its_own_rounding():
    assert worst_error(lambda **x: attend(**x), attention_by_token, some(64), torch.bfloat16) < 0.02


def test_a_query_that_sees_no_key_is_zero_with_finite_gradients():
    x = {name: value.requires_grad_() for name, value in some(9, 4).items()}
    o = flash_attn_func(**x, causal=True)
    o.sum().backward()
    assert not o[:, :5].any()
    assert all(y.grad is not None and bool(y.grad.isfinite().all()) for y in x.values())


@pytest.mark.parametrize(
    "option", [{"dropout_p": 0.1}, {"softcap": 5.0}, {"alibi_slopes": torch.ones(4)}, {"return_attn_probs": True}]
)
def test_what_has_no_counterpart_is_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        flash_attn_func(**some(4), **option)


def test_a_compiled_caller_gets_the_same(monkeypatch):
    x = some(24)
    compiled = torch.compile(lambda **x: flash_attn_func(**x, causal=True, window_size=(5, 0)) * 2, backend="eager")
    torch.testing.assert_close(compiled(**x), flash_attn_func(**x, causal=True, window_size=(5, 0)) * 2)


def test_the_kernel_for_packed_documents_is_told_all(monkeypatch):
    given: dict[str, Any] = {}

    def kernel(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Tensor:
        given.update(options, rest=rest)
        return q

    monkeypatch.setattr(attention, "_has_kernel", lambda q, v: True)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    borders = torch.tensor([0, 3, 8])
    x = {name: value[0] for name, value in some(8, rows=1).items()}
    flash_attn_varlen_func(**x, cu_seqlens_q=borders, cu_seqlens_k=borders, max_seqlen_q=5, max_seqlen_k=5,
                           softmax_scale=0.3, causal=True, window_size=(2, 0))  # fmt: skip
    assert given["scale"] == 0.3 and given["window_size"] == (2, 0) and given["enable_gqa"]
    assert given["rest"][0].dtype == torch.int32 and given["rest"][2:] == (5, 5)
