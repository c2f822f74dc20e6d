"""NSA and MoBA against the loops over queries that define them and fla's references."""

from typing import Any

import pytest
import torch
from fla.ops.nsa.naive import naive_nsa_compression, naive_nsa_selection, naive_nsa_topk
from torch import Tensor

from flame.ops.attention import attention_by_token
from flame.ops.moba import moba_by_token, parallel_moba
from flame.ops.nsa import nsa_by_token, parallel_nsa
from tests.unit.ops.agreement import worst_error
from tests.unit.ops.packing import apart

TIGHT = 3e-6
SIZES: dict[str, Any] = {"block_counts": 4, "block_size": 16, "window_size": 20}
BORDERS = [0, 1, 18, 18, 83, 213]


def some(length: int, heads: int = 8) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    counts = {"q": heads, "k": 2, "v": 2}
    return {name: torch.randn(1, length, count, 16, generator=generator) for name, count in counts.items()}


def gated(length: int, heads: int = 8) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    gates = {name: torch.rand(1, length, heads, generator=generator) for name in ("g_cmp", "g_slc", "g_swa")}
    return some(length, heads) | gates


@pytest.mark.parametrize("length", [17, 64, 130, 200])
def test_nsa_agrees_with_the_definition(length):
    assert worst_error(parallel_nsa, nsa_by_token, gated(length), **SIZES) < TIGHT


def test_nsa_agrees_with_flas_references():
    x = gated(130, heads=32)
    means = {name: torch.stack([y.mean(1) for y in x[name].split(16, 1)], 1) for name in ("k", "v")}
    chosen = naive_nsa_topk(x["q"], means["k"], 4, 16, 0.25)
    expected = naive_nsa_selection(x["q"], x["k"], x["v"], chosen, 16, 0.25) * x["g_slc"][..., None]
    parallel = parallel_nsa(x["q"], x["k"], x["v"], g_slc=x["g_slc"], block_indices=chosen, block_size=16)
    torch.testing.assert_close(parallel, expected, rtol=1e-4, atol=1e-5)
    summary, _ = naive_nsa_compression(x["q"], means["k"], means["v"], 16, 0.25)
    found = parallel_nsa(**x, block_counts=4, block_size=16)
    torch.testing.assert_close(found, expected + summary * x["g_cmp"][..., None], rtol=1e-4, atol=1e-5)


def test_nsa_takes_a_number_of_blocks_for_each_query():
    x = gated(100)
    counts = torch.full((1, 100, 2), 6)
    counts[:, :50] = 4
    sizes: dict[str, Any] = {"block_size": 16, "window_size": 20}
    found = parallel_nsa(**x, **sizes, block_counts=counts)
    torch.testing.assert_close(found[:, :50], parallel_nsa(**x, **SIZES)[:, :50])
    torch.testing.assert_close(found[:, 50:], parallel_nsa(**x, **sizes, block_counts=6)[:, 50:])


def test_nsa_keeps_packed_documents_apart():
    def slow(**x: Any) -> Tensor:
        return nsa_by_token(**x, **SIZES)

    def fast(**x: Any) -> Tensor:
        return parallel_nsa(**x, **SIZES, cu_seqlens=torch.tensor(BORDERS))

    assert worst_error(fast, apart(slow, BORDERS), gated(BORDERS[-1])) < TIGHT


@pytest.mark.parametrize("count", [1, 7])
def test_nsa_decoding_continues_the_parallel_pass(count):
    x = gated(70)
    whole = parallel_nsa(**x, **SIZES)
    last = {name: y if name in ("k", "v") else y[:, -count:] for name, y in x.items()}
    torch.testing.assert_close(parallel_nsa(**last, **SIZES), whole[:, -count:], rtol=1e-5, atol=1e-5)
    borders = torch.tensor([0, count]), torch.tensor([0, 70])
    found = parallel_nsa(**last, **SIZES, cu_seqlens=borders)
    torch.testing.assert_close(found, whole[:, -count:], rtol=1e-5, atol=1e-5)


def test_nsa_without_anything_to_choose_by_is_refused():
    with pytest.raises(ValueError, match="g_cmp"):
        parallel_nsa(**some(4))
    with pytest.raises(ValueError, match="g_swa"):
        parallel_nsa(**some(4), g_cmp=torch.ones(1, 4, 8), window_size=4)


def moba(**x: Any) -> Tensor:
    return parallel_moba(**x, cu_seqlens=torch.tensor([0, x["q"].shape[1]]), max_seqlen=0, chunk_size=16, topk=3)


@pytest.mark.parametrize("length", [17, 64, 130, 200])
def test_moba_agrees_with_the_definition(length):
    def slow(**x: Any) -> Tensor:
        return moba_by_token(**x, chunk_size=16, topk=3)

    assert worst_error(moba, slow, some(length)) < TIGHT


def test_moba_keeps_packed_documents_apart():
    def slow(**x: Any) -> Tensor:
        return moba_by_token(**x, chunk_size=16, topk=3)

    def fast(**x: Any) -> Tensor:
        return parallel_moba(**x, cu_seqlens=torch.tensor(BORDERS), max_seqlen=0, chunk_size=16, topk=3)

    assert worst_error(fast, apart(slow, BORDERS), some(BORDERS[-1])) < TIGHT


@pytest.mark.parametrize(("chunk", "topk"), [(16, 1), (16, 20), (200, 3)])
def test_moba_that_sees_everything_is_full_attention(chunk, topk):
    x = some(70)
    found = parallel_moba(**x, cu_seqlens=torch.tensor([0, 70]), max_seqlen=70, chunk_size=chunk, topk=topk)
    torch.testing.assert_close(found, attention_by_token(**x).float(), rtol=1e-4, atol=1e-5)
