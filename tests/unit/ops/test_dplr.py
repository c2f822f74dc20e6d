"""The diagonal-plus-low-rank recurrence and RWKV-7 against the token loop and fla's own references."""

from typing import Any

import pytest
import torch
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.generalized_delta_rule.iplr.naive import iplr_recurrence
from fla.ops.rwkv7.fused_addcmul import torch_addcmul_rwkv7
from fla.ops.rwkv7.fused_k_update import k_update_ref
from fla.ops.rwkv7.gate_output_correction import gate_output_correction_ref
from torch import Tensor
from torch.nn.functional import normalize

from flame.ops import rwkv7
from flame.ops.dplr import (
    chunk_dplr_delta_rule,
    chunk_iplr_delta_rule,
    dplr,
    dplr_by_token,
    fused_recurrent_dplr_delta_rule,
    fused_recurrent_iplr_delta_rule,
)
from tests.unit.ops.test_delta import CU, results, worst


def inputs(
    T: int, K: int = 32, V: int = 16, strength: float | None = 1.0, packed: bool = False, dtype=torch.float64
) -> list[Any]:
    """r, k, v, a, b, log decays and states as RWKV-7 makes them: a removes what b puts back in part."""
    generator = torch.Generator().manual_seed(T + K)
    B, N = (1, len(CU) - 1) if packed else (2, 2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, kk = (normalize(normal(B, T, 2, K), dim=-1) for _ in range(3))
    share, decay = (torch.rand(B, T, 2, K, generator=generator, dtype=torch.float64) for _ in range(2))
    g = None if strength is None else -strength * decay
    tensors = [q, k, normal(B, T, 2, V), -kk, kk * share, g, normal(N, 2, K, V)]
    return [x if x is None else x.to(dtype) for x in tensors]


@pytest.mark.parametrize("T", [1, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("strength", [None, 0.6])
def test_chunks_equal_the_token_loop(T: int, strength: float | None) -> None:
    tensors = inputs(T, strength=strength)
    assert worst(results(dplr, tensors), results(dplr_by_token, tensors)) < 1e-6


@pytest.mark.parametrize("strength", [None, 0.6])
def test_packed_documents_keep_to_themselves(strength: float | None) -> None:
    tensors, cu = inputs(131, strength=strength, packed=True), torch.tensor(CU)
    ours = results(dplr, tensors, cu_seqlens=cu)
    assert worst(ours, results(dplr_by_token, tensors, cu_seqlens=cu)) < 1e-6


@pytest.mark.parametrize("strength", [5, 30, 300])
def test_strong_decays_stay_finite_and_exact(strength: float) -> None:
    tensors = inputs(130, strength=strength, dtype=torch.float32)
    reference = results(dplr_by_token, [x.double() for x in tensors])
    assert worst(results(dplr, tensors), reference) < 3e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 6e-2)])
def test_wide_heads_in_lower_precision(dtype: torch.dtype, tolerance: float) -> None:
    tensors = inputs(70, 256, 128, 0.6, dtype=dtype)
    ours = results(dplr, tensors)
    assert ours[0].dtype == dtype and ours[1].dtype == torch.float32
    assert worst(ours, results(dplr_by_token, [x.double() for x in tensors])) < tolerance


@pytest.mark.parametrize("function", [chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule])
def test_dplr_entries_equal_flas_reference(function) -> None:
    q, k, v, a, b, g, state = inputs(70, dtype=torch.float32)
    ours = function(q, k, v, a, b, g, initial_state=state, output_final_state=True)
    o, final = dplr_recurrence(*(x.transpose(1, 2) for x in (q, k, v, a, b, g)), initial_state=state)
    torch.testing.assert_close(ours, (o.transpose(1, 2), final), rtol=1e-4, atol=1e-5)
    assert function(q, k, v, a, b, g)[1] is None


@pytest.mark.parametrize("function", [chunk_iplr_delta_rule, fused_recurrent_iplr_delta_rule])
def test_iplr_entries_equal_flas_reference(function) -> None:
    q, k, v, a, b, _, state = inputs(70, strength=None, dtype=torch.float32)
    ours = function(q, k, v, a, b, initial_state=state, output_final_state=True)
    o, final = iplr_recurrence(*(x.transpose(1, 2) for x in (q, k, v, a, b)), initial_state=state)
    torch.testing.assert_close(ours, (o.transpose(1, 2), final), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_reverse_runs_each_document_backwards(packed: bool) -> None:
    q, k, v, a, b, g, state = inputs(131, packed=packed)
    cu = torch.tensor(CU) if packed else None
    o, final = fused_recurrent_dplr_delta_rule(q, k, v, a, b, g, 1.0, state, True, True, cu)
    start, end, row, document = (70, 131, 0, 3) if packed else (0, 131, 1, 1)
    alone = [x[row : row + 1, start:end].flip(1) for x in (q, k, v, a, b, g)]
    expected = dplr_by_token(*alone, initial_state=state[document : document + 1])
    torch.testing.assert_close(o[row : row + 1, start:end].flip(1), expected[0], rtol=1e-5, atol=1e-6)
    assert final is not None
    torch.testing.assert_close(final[document : document + 1], expected[1], rtol=1e-5, atol=1e-6)


def test_rwkv7_entries_agree() -> None:
    r, k, v, a, b, w, state = inputs(70)
    share = b / -a
    reference = dplr_by_token(r, k, v, a, b, w, state)
    options = {"initial_state": state, "output_final_state": True}
    for ours in (
        rwkv7.chunk_rwkv7(r, w, k, v, a, b, **options),
        rwkv7.fused_recurrent_rwkv7(r, w, k, v, a, b, scale=1.0, **options),
        rwkv7.fused_mul_recurrent_rwkv7(r, w, k, v, -a, share, **options),
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


def test_elementwise_steps_equal_flas_references() -> None:
    B, T, H, D = 2, 9, 3, 8
    hidden, delta, o, g = (torch.randn(B, T, H * D) for _ in range(4))
    mixes = [torch.randn(1, 1, H * D) for _ in range(6)]
    torch.testing.assert_close(
        rwkv7.fused_addcmul_rwkv7(hidden, delta, *mixes), torch_addcmul_rwkv7(hidden, delta, *mixes)
    )
    assert rwkv7.fused_addcmul_rwkv7(hidden, delta, *mixes[:5])[5] is None
    k, a, ka = hidden, delta.sigmoid(), mixes[0].flatten()
    torch.testing.assert_close(rwkv7.fused_k_rwkv7(k, a, ka), k_update_ref(k, a, ka))
    r, key, v = (torch.randn(B, T, H, D) for _ in range(3))
    weights = torch.randn(H, D)
    torch.testing.assert_close(
        rwkv7.gate_output_correction(o, r, key, weights, v, g), gate_output_correction_ref(o, r, key, weights, v, g)
    )


def test_tensors_without_values() -> None:
    tensors = inputs(131)
    shapes = [y.shape for y in dplr(*tensors)]
    assert [y.shape for y in dplr(*(y.to("meta") for y in tensors))] == shapes


def test_what_needs_kernels_or_does_not_fit_is_refused() -> None:
    r, k, v, a, b, w, state = inputs(5)
    with pytest.raises(ValueError, match="cp_context"):
        rwkv7.chunk_rwkv7(r, w, k, v, a, b, cp_context=object())
    with pytest.raises(ValueError, match="1 states for 2 documents"):
        rwkv7.chunk_rwkv7(r, w, k, v, a, b, initial_state=state[:1])
