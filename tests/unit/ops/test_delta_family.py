"""Momentum, preconditioned keys and MesaNet against their token loops and fla's own references."""

from typing import Any

import pytest
import torch
from fla.ops.mesa_net.naive import naive_mesa_net_CG, naive_mesa_net_decoding_one_step, naive_mesa_net_exact
from fla.ops.momentum_delta_rule.naive import recurrent_momentum_delta_rule_ref
from fla.ops.precond_gated_delta_rule.naive import naive_recurrent_precond_gated_delta_rule
from fla.ops.precond_kda.naive import naive_recurrent_precond_kda
from torch import Tensor
from torch.nn.functional import normalize

from flame.ops import mesa, momentum, preconditioned
from flame.ops.delta_inputs import unit_length
from tests.unit.ops.test_delta import CU, results, worst

B, H, K, V = 2, 2, 32, 16
LENGTHS = [1, 17, 63, 64, 65, 130]


class Draw:
    """Random tensors of one length, the same for every caller."""

    def __init__(self, T: int, packed: bool = False, dtype: torch.dtype = torch.float64) -> None:
        self.generator, self.dtype, self.T = torch.Generator().manual_seed(T), dtype, T
        self.B, self.N = (1, len(CU) - 1) if packed else (B, B)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def key(self, width: int = K) -> Tensor:
        return normalize(self.normal(self.B, self.T, H, width), dim=-1)

    def value(self, width: int = V) -> Tensor:
        return self.normal(self.B, self.T, H, width)

    def share(self, *widths: int) -> Tensor:
        return torch.rand(self.B, self.T, H, *widths, generator=self.generator, dtype=torch.float64).to(self.dtype)


def momentum_inputs(T: int, strength: float = 1.0, packed: bool = False, dtype: torch.dtype = torch.float64) -> list:
    draw = Draw(T, packed, dtype)
    tensors = [draw.key(), draw.key(), draw.value(), draw.key(), -strength * draw.share(), -strength * draw.share()]
    return [*tensors, draw.share(), draw.normal(draw.N, H, 2 * K, V)]


@pytest.mark.parametrize("T", LENGTHS)
def test_momentum_equals_the_token_loop(T: int) -> None:
    tensors = momentum_inputs(T)
    ours = results(momentum.momentum_rule, tensors)
    assert worst(ours, results(momentum.momentum_rule_by_token, tensors)) < 2e-6


def test_momentum_of_packed_documents() -> None:
    tensors, cu = momentum_inputs(131, packed=True), torch.tensor(CU)
    ours = results(momentum.momentum_rule, tensors, cu_seqlens=cu)
    assert worst(ours, results(momentum.momentum_rule_by_token, tensors, cu_seqlens=cu)) < 2e-6


@pytest.mark.parametrize("strength", [0.01, 30, 300])
def test_momentum_of_weak_and_strong_decays(strength: float) -> None:
    tensors = momentum_inputs(130, strength, dtype=torch.float32)
    if strength < 1:  # what never decays must be written gently to stay bounded
        tensors[6] = tensors[6] * 0.1
    reference = results(momentum.momentum_rule_by_token, [x.double() for x in tensors])
    assert worst(results(momentum.momentum_rule, tensors), reference) < 1e-4


def test_momentum_in_bfloat16() -> None:
    tensors = momentum_inputs(70, dtype=torch.bfloat16)
    ours = results(momentum.momentum_rule, tensors)
    assert ours[0].dtype == torch.bfloat16
    assert worst(ours, results(momentum.momentum_rule_by_token, [x.double() for x in tensors])) < 6e-2


def test_momentum_entry_equals_flas_reference() -> None:
    q, k, v, p, alpha, mu, beta, _ = (x.float() for x in momentum_inputs(70))
    eta, state = Draw(70).share().float(), torch.randn(2, B, H, K, V)
    ours = momentum.chunk_momentum_delta_rule(
        3 * q, 2 * k, v, alpha, mu, p, beta, eta, initial_state=state, output_final_state=True
    )
    theirs = recurrent_momentum_delta_rule_ref(
        q, k, v, alpha, mu, p * alpha.exp().unsqueeze(-1), beta, eta, None, state[0], state[1], True
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_tensors_without_values() -> None:
    tensors = momentum_inputs(130)
    shapes = [y.shape for y in momentum.momentum_rule(*tensors)]
    assert [y.shape for y in momentum.momentum_rule(*(y.to("meta") for y in tensors))] == shapes
    shapes = [y.shape for y in run_mesa(*mesa_inputs(130))]
    assert [y.shape for y in run_mesa(*(y.to("meta") for y in mesa_inputs(130)))] == shapes


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("strength", [1.0, 300.0])
def test_second_moments_equal_the_token_loop(T: int, strength: float) -> None:
    draw = Draw(T)
    tensors = [draw.key(), -strength * draw.share(), draw.share(), draw.share(K)[:, 0]]
    ours = results(preconditioned.second_moments, tensors)
    assert worst(ours, results(preconditioned.second_moments_by_token, tensors)) < 1e-6


def test_second_moments_of_packed_documents() -> None:
    draw, cu = Draw(131, packed=True), torch.tensor(CU)
    tensors = [draw.key(), -draw.share(), draw.share(), draw.normal(draw.N, H, K).square()]
    ours = results(preconditioned.second_moments, tensors, cu_seqlens=cu)
    assert worst(ours, results(preconditioned.second_moments_by_token, tensors, cu_seqlens=cu)) < 1e-6


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("entry", ["chunk", "fused_recurrent"])
def test_preconditioned_gated_delta_rule_equals_flas_reference(groups: int, entry: str) -> None:
    draw = Draw(70, dtype=torch.float32)
    q, k, g_atk, beta_atk = draw.key(), draw.key(), -draw.share(), draw.share()
    v, g, beta = (x.repeat_interleave(groups, 2) for x in (draw.value(), -draw.share(), draw.share()))
    options = {"initial_state": draw.normal(B, H * groups, K, V), "initial_A_state": draw.normal(B, H, K).square(),
               "log_atk_scale": draw.normal(H), "output_final_state": True}  # fmt: skip
    function = getattr(preconditioned, f"{entry}_precond_gated_delta_rule")

    def ours(q, k, v, g_atk, g, beta_atk, beta):
        return function(q=q, k=k, v=v, g_atk=g_atk, g=g, beta_atk=beta_atk, beta=beta, **options)

    def theirs(q, k, v, g_atk, g, beta_atk, beta):
        q, k = unit_length(q), unit_length(k)
        return naive_recurrent_precond_gated_delta_rule(q, k, v, g_atk, g, beta_atk, beta, **options)

    tensors = [q, k, v, g_atk, g, beta_atk, beta]
    assert worst(results(ours, tensors), results(theirs, tensors)) < 1e-4


@pytest.mark.parametrize("entry", ["chunk", "fused_recurrent"])
def test_preconditioned_kda_equals_flas_reference(entry: str) -> None:
    draw = Draw(70, dtype=torch.float32)
    tensors = [draw.key(), draw.key(), draw.value(), -draw.share(K), -draw.share(), draw.share(), draw.share()]
    options = {"initial_state": draw.normal(B, H, K, V), "initial_A_state": draw.normal(B, H, K).square(),
               "log_atk_scale": draw.normal(H), "output_final_state": True}  # fmt: skip
    function = getattr(preconditioned, f"{entry}_precond_kda")

    def theirs(q, k, *rest):
        return naive_recurrent_precond_kda(unit_length(q), unit_length(k), *rest, **options)

    ours = results(lambda *x: function(*x, **options), tensors)
    assert worst(ours, results(theirs, tensors)) < 1e-4


def mesa_inputs(T: int, packed: bool = False, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = Draw(T, packed, dtype)
    keys = draw.normal(draw.N, H, K, K) / K**0.5
    tensors = [draw.key(), draw.key(), draw.value(K), -0.3 * draw.share(), draw.share()]
    return [*tensors, 0.5 + draw.share(K)[0, 0], keys @ keys.mT, draw.normal(draw.N, H, K, K)]


def run_mesa(q, k, v, g, beta, lamb, h, s, function=mesa.mesa, **options):
    return function(q, k, v, g, beta, lamb, ((h + h.mT) / 2, s), **options)  # only symmetric moments mean anything


@pytest.mark.parametrize("T", LENGTHS)
def test_mesa_equals_exact_systems_token_by_token(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = mesa_inputs(T)
    theirs = results(lambda *x: run_mesa(*x, function=mesa.mesa_by_token), tensors)
    assert worst(results(lambda *x: run_mesa(*x), tensors), theirs) < 1e-2  # as far as fla's TINY lets it converge
    monkeypatch.setattr(mesa, "TINY", 1e-30)
    assert worst(results(lambda *x: run_mesa(*x), tensors), theirs) < 1e-6


def test_mesa_of_packed_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesa, "TINY", 1e-30)
    tensors, cu = mesa_inputs(131, packed=True), torch.tensor(CU)
    theirs = results(lambda *x: run_mesa(*x, function=mesa.mesa_by_token, cu_seqlens=cu), tensors)
    assert worst(results(lambda *x: run_mesa(*x, cu_seqlens=cu), tensors), theirs) < 1e-6


def test_mesa_gradients_do_not_vanish_with_the_loss() -> None:
    tensors = mesa_inputs(65, dtype=torch.float32)

    def scaled(scale: float) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in tensors]
        (run_mesa(*leaves)[0].sum() * scale).backward()
        return [x.grad / scale for x in leaves]  # pyright: ignore

    assert worst(scaled(1e-6), scaled(1.0)) < 1e-3


def test_mesa_entries_equal_flas_references() -> None:
    q, k, v, g, beta, lamb, h, s = mesa_inputs(64, dtype=torch.float32)
    options: dict[str, Any] = {"h_kk_init": h, "h_kv_init": s}
    ours = mesa.chunk_mesa_net(q, k, v, g, beta, lamb, **options, output_final_state=True)
    torch.testing.assert_close(ours, naive_mesa_net_CG(q, k, v, g, lamb, beta, 32, **options), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours, naive_mesa_net_exact(q, k, v, g, lamb, beta, **options), rtol=5e-3, atol=5e-3)
    token: list[Any] = [x[:, 0] for x in (q, k, v, g)] + [lamb, beta[:, 0], h, s]
    ours = mesa.mesa_net_decoding_one_step(*token)
    torch.testing.assert_close(ours, naive_mesa_net_decoding_one_step(*token), rtol=1e-4, atol=1e-4)
