"""The delta rules in chunks against the token loop and fla's own references."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from flame.ops import delta
from flame.ops.delta import delta_rule, delta_rule_by_token, unit_lower_inverse

CU = [0, 1, 70, 70, 131]


def inputs(
    T: int, K: int, V: int, decay: str = "head", strength: float = 1.0, dtype=torch.float64, documents: int = 0
) -> list[Any]:
    """Queries, keys, gated values and erase keys, log decays and states, the same for every caller."""
    generator = torch.Generator().manual_seed(T + K)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    B, H = (1, 2) if documents else (2, 2)
    q, k = normalize(normal(B, T, H, K), dim=-1), normalize(normal(B, T, H, K), dim=-1)
    v, beta = normal(B, T, H, V), 2 * torch.rand(B, T, H, 1, generator=generator, dtype=torch.float64)
    width = {"none": 0, "head": 1, "channel": K}[decay]
    g = -strength * torch.rand(B, T, H, width, generator=generator, dtype=torch.float64) if width else None
    state = normal(documents or B, H, K, V)
    return [x if x is None else x.to(dtype) for x in (q, k, v * beta, k * beta, g, state)]


def results(function, tensors: list, **options) -> list[Tensor]:
    """Outputs, final states and the gradients of a sum of both that weighs every entry differently."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in tensors]
    outputs = function(*leaves, **options)
    total = sum((x.double() * torch.arange(x.numel()).view(x.shape).cos()).sum() for x in outputs)
    total.backward()  # pyright: ignore
    return [x.detach() for x in outputs] + [x.grad for x in leaves if x is not None]


def worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert all(torch.isfinite(x).all() for x in ours)
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-3))
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("T", [1, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("decay", ["none", "head", "channel"])
def test_chunks_equal_the_token_loop(T: int, decay: str) -> None:
    tensors = inputs(T, 32, 16, decay)
    assert worst(results(delta_rule, tensors), results(delta_rule_by_token, tensors)) < 1e-6


@pytest.mark.parametrize("decay", ["none", "head", "channel"])
def test_packed_documents_keep_to_themselves(decay: str) -> None:
    tensors, cu = inputs(131, 32, 32, decay, documents=4), torch.tensor(CU)
    ours = results(delta_rule, tensors, cu_seqlens=cu)
    assert worst(ours, results(delta_rule_by_token, tensors, cu_seqlens=cu)) < 1e-6
    alone: list[Any] = [None if x is None else x[:, 70:131] for x in tensors[:5]]
    torch.testing.assert_close(ours[0][:, 70:131], delta_rule(*alone, initial_state=tensors[5][3:])[0])


@pytest.mark.parametrize(("decay", "strength"), [("head", 30), ("head", 300), ("channel", 30), ("channel", 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strong_decays_stay_finite_and_exact(decay: str, strength: float, dtype: torch.dtype) -> None:
    tensors = inputs(130, 32, 16, decay, strength, dtype)
    reference = results(delta_rule_by_token, [x.double() for x in tensors])
    assert worst(results(delta_rule, tensors), reference) < 3e-5


@pytest.mark.parametrize("strength", [1.0, 100.0])
def test_reading_before_the_decay(strength: float) -> None:
    tensors = inputs(70, 16, 16, "head", strength)
    ours = results(delta_rule, tensors, erase_first=True)
    assert worst(ours, results(delta_rule_by_token, tensors, erase_first=True)) < 1e-6


@pytest.mark.parametrize("decay", ["none", "head", "channel"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 6e-2)])
def test_wide_heads_in_lower_precision(decay: str, dtype: torch.dtype, tolerance: float) -> None:
    tensors = inputs(70, 256, 128, decay, 1.0, dtype)
    ours = results(delta_rule, tensors)
    assert ours[0].dtype == dtype and ours[1].dtype == torch.float32
    reference = results(delta_rule_by_token, [None if x is None else x.double() for x in tensors])
    assert worst(ours, reference) < tolerance


def test_chunks_of_any_size_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs(130, 32, 32, "channel")
    reference = results(delta_rule, tensors)
    monkeypatch.setattr(delta, "chunk_size", lambda _: 64)
    assert worst(results(delta_rule, tensors), reference) < 1e-6


def test_a_sequence_cut_in_two_continues_from_its_state() -> None:
    *tensors, state = inputs(90, 32, 32, "channel")
    whole, final = delta_rule(*tensors, initial_state=state)
    first, middle = delta_rule(*[x[:, :40] for x in tensors], initial_state=state)
    parts, tokens = [first], [slice(t, t + 1) for t in range(40, 90)]
    for token in tokens:
        out, middle = delta_rule(*[x[:, token] for x in tensors], initial_state=middle)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(middle, final)


def test_inverse_ignores_what_is_not_below_the_diagonal() -> None:
    x = torch.randn(3, 20, 20, dtype=torch.float64, requires_grad=True)
    inverse = unit_lower_inverse(x)
    eye = torch.eye(20, dtype=torch.float64)
    torch.testing.assert_close(inverse @ (eye + x.tril(-1)), eye.expand_as(x))
    small = pad(torch.randn(2, 4, 4, dtype=torch.float64), (0, 1, 0, 1)).requires_grad_()
    assert torch.autograd.gradcheck(unit_lower_inverse, small)


def test_compiles() -> None:
    tensors = inputs(40, 16, 16, "channel", dtype=torch.float32)
    compiled = torch.compile(delta_rule, backend="aot_eager")
    assert worst(results(compiled, tensors), results(delta_rule, tensors)) < 1e-5


def test_borders_that_do_not_cover_the_tokens_are_refused() -> None:
    tensors = inputs(131, 16, 16, "head", documents=4)
    with pytest.raises(ValueError, match="does not cover"):
        delta_rule(*tensors, cu_seqlens=torch.tensor([0, 130]))
