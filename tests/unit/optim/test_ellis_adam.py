"""ELLISAdam against a formula for one number, written down once more."""

import math
from typing import Any

import pytest
import torch
import torch.nn as nn
from transformers import LlamaForCausalLM

from flame.config import parse
from flame.optim import build_optimizers
from flame.optim.ellis_adam import ELLISAdam, Options
from tests.unit.optim.test_muon import LLAMA

LR, BASE, BETAS, EPS, DECAY = 0.01, 0.02, (0.9, 0.95), 1e-6, 0.1
MAIN_RUN = {"running_init": True, "update_clipping": True, "atan_adam": True, "decouple_wd": True}
CASES: list[dict[str, Any]] = [
    {},
    {"running_init": True},
    {"update_clipping": True},
    {"atan_adam": True},
    {"decouple_wd": True},
    {"nesterov": True},
    {"tensor_wise_gradient_normalization": True},
    {"state_dtype": torch.float32},
    MAIN_RUN,
    {**MAIN_RUN, "nesterov": True, "tensor_wise_gradient_normalization": True},
]


def optimizer_of(value: nn.Parameter, decay: float = DECAY, lr: float = LR, base: float = BASE, **on: Any) -> ELLISAdam:
    group = {"params": [value], "lr": lr, "initial_lr": base, "betas": BETAS, "eps": EPS, "weight_decay": decay}
    return ELLISAdam([group], ["matrices"], Options(**on))


def stepped(start: torch.Tensor, gradients: list[torch.Tensor], **keys: Any) -> torch.Tensor:
    value = nn.Parameter(start.clone())
    optimizer = optimizer_of(value, **keys)
    for gradient in gradients:
        value.grad = gradient.clone()
        optimizer.step()
    return value.detach()


def reference(values: list[float], gradients: list[list[float]], on: dict[str, Any]) -> list[float]:
    """A tensor's numbers one by one, as models of the paper's code have them."""
    b1, b2 = BETAS
    m, v = [0.0] * len(values), [0.0] * len(values)
    for t, g in enumerate(gradients, start=1):
        if on.get("tensor_wise_gradient_normalization"):
            norm = math.sqrt(sum(x * x for x in g))
            g = [x / norm for x in g]
        if t == 1 and on.get("running_init"):
            m, v = list(g), [x * x for x in g]
        m = [b1 * old + (1 - b1) * new for old, new in zip(m, g, strict=True)]
        v = [b2 * old + (1 - b2) * new * new for old, new in zip(v, g, strict=True)]
        s = LR
        if on.get("update_clipping"):
            v = [max(x, EPS**2) for x in v]
            s = LR / max(1.0, math.sqrt(sum(x * x / y for x, y in zip(g, v, strict=True)) / len(g)))
        s /= 1 - b1**t
        decay = LR / BASE * DECAY if on.get("decouple_wd") else LR * DECAY
        top = [b1 * x + (1 - b1) * y for x, y in zip(m, g, strict=True)] if on.get("nesterov") else m
        for i in range(len(values)):
            root = math.sqrt(v[i]) / math.sqrt(1 - b2**t)
            move = math.atan2(top[i], root) if on.get("atan_adam") else top[i] / (root + EPS)
            values[i] = values[i] * (1 - decay) - s * move
    return values


@pytest.mark.parametrize("on", CASES, ids=lambda on: " ".join(on) or "plain")
def test_it_equals_the_formula_for_twenty_steps(on: dict[str, Any]) -> None:
    start, gradients = torch.randn(7), [torch.randn(7) * 10 ** (step % 4 - 2) for step in range(20)]
    expected = reference(start.double().tolist(), [g.double().tolist() for g in gradients], on)
    torch.testing.assert_close(
        stepped(start, gradients, **on).double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-6
    )


def test_the_first_step_with_both_running_start_and_correction() -> None:
    """2.2 lr at betas (0.9, 0.95), as the paper's code has it."""
    moved = stepped(torch.zeros(3), [torch.tensor([1.0, -2.0, 3.0])], decay=0.0, running_init=True, atan_adam=True)
    expected = LR / 0.1 * math.atan(math.sqrt(0.05))
    torch.testing.assert_close(moved, torch.tensor([-1.0, 1.0, -1.0]) * expected)


def test_an_arc_tangent_never_moves_further_than_half_a_turn() -> None:
    start, gradients = torch.zeros(100), [torch.randn(100) * 10 ** (step % 7 - 3) for step in range(200)]
    before = stepped(start, gradients[:-1], decay=0.0, atan_adam=True)
    after = stepped(start, gradients, decay=0.0, atan_adam=True)
    assert (after - before).abs().max() <= LR * math.pi / 2 / (1 - 0.9**200)


@pytest.mark.parametrize("decoupled", [True, False])
def test_decoupled_decay_does_not_depend_on_the_base_rate(decoupled: bool) -> None:
    start, still = torch.randn(5), [torch.zeros(5)]
    low = stepped(start, still, lr=1e-4, base=1e-4, decouple_wd=decoupled)
    high = stepped(start, still, lr=1e-2, base=1e-2, decouple_wd=decoupled)
    assert torch.equal(low, high) == decoupled


def test_a_tensor_that_is_not_finite_is_left_alone() -> None:
    bad, good = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    group = {"params": [bad, good], "lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
    optimizer = ELLISAdam([group], ["matrices"], Options(skip_nonfinite_tensors=True))
    bad.grad, good.grad = torch.tensor([1.0, math.nan, 1.0]), torch.ones(3)
    assert optimizer.leave_out_nonfinite() == 1
    optimizer.step()
    assert torch.equal(bad, torch.ones(3)) and optimizer.state[bad]["step"] == 0
    assert not torch.equal(good, torch.ones(3)) and optimizer.state[good]["step"] == 1


def test_kahan_summation_keeps_small_steps_of_rough_weights() -> None:
    start, gradients = torch.ones(64), [torch.ones(64)] * 100
    exact = stepped(start, gradients, lr=1e-4, decay=0.0)
    rough = start.bfloat16(), [gradient.bfloat16() for gradient in gradients]
    carried = stepped(*rough, lr=1e-4, decay=0.0, kahan_sum=True)
    lost = stepped(*rough, lr=1e-4, decay=0.0)
    assert (carried.float() - exact).abs().max() < 4e-3  # one step of bfloat16 below 1
    assert (lost.float() - exact).abs().max() > 9e-3


def test_moments_in_another_type_survive_a_checkpoint() -> None:
    value = nn.Parameter(torch.randn(4))
    optimizer = optimizer_of(value, state_dtype=torch.bfloat16)
    value.grad = torch.randn(4)
    optimizer.step()
    other = optimizer_of(nn.Parameter(value.detach().clone()), state_dtype=torch.bfloat16)
    other.load_state_dict(optimizer.state_dict())
    (state,) = other.state.values()
    assert state["exp_avg"].dtype == torch.bfloat16
    assert torch.equal(state["exp_avg"], optimizer.state[value]["exp_avg"])


def test_norms_and_biases_do_not_decay() -> None:
    layout: Any = None
    config = parse(["--optimizer.name", "ELLISAdam"])
    (optimizer,) = build_optimizers([LlamaForCausalLM(LLAMA)], config, layout).optimizers
    decays = {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
    assert decays == {0.01: 1, 0.0: 5} or set(decays) == {0.01, 0.0}
    assert optimizer.param_groups[-1]["weight_decay"] == 0.0
    assert all(value.ndim == 1 for value in optimizer.param_groups[-1]["params"])
    assert {group["lr"] for group in optimizer.param_groups} == {3e-4}
