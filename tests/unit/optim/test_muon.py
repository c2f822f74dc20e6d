"""Muon against nanochat's equations, and what its groups and schedules are."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn as nn
from transformers import LlamaConfig, LlamaForCausalLM

from flame.config import parse
from flame.optim import build_lr_schedulers, build_optimizers
from flame.optim.exchange import exchanges
from flame.optim.groups import Parameter
from flame.optim.matrices import matrices_of, share_out
from flame.optim.muon import Muon, Recipe
from flame.optim.orthogonal import coefficients
from tests.unit.optim.test_orthogonal import by_formula

PLAIN = Recipe(coefficients("newton_schulz", 5), torch.float32)
LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def muon_of(values: list[nn.Parameter], recipe: Recipe = PLAIN, decay: float = 0.0, **facts: Any) -> Muon:
    named = [Parameter(str(index), value, "matrices", **facts) for index, value in enumerate(values)]
    return Muon([{"params": values, "lr": 0.02, "weight_decay": decay}], named, ["matrices"], recipe)


def stepped(value: torch.Tensor, gradients: list[torch.Tensor], **keys: Any) -> torch.Tensor:
    """A parameter after some steps."""
    parameter = nn.Parameter(value.clone())
    optimizer = muon_of([parameter], **keys)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def reference(value: torch.Tensor, gradients: list[torch.Tensor], decay: float = 0.0) -> torch.Tensor:
    """nanochat's Muon, in float64."""
    value, buffer = value.double(), torch.zeros_like(value, dtype=torch.float64)
    for step, gradient in enumerate(gradients):
        share = min(step / 300, 1)
        momentum = (1 - share) * 0.85 + share * 0.95
        buffer = momentum * buffer + (1 - momentum) * gradient
        update = by_formula((1 - momentum) * gradient + momentum * buffer, 5)
        value = value * (1 - 0.02 * decay) - 0.02 * max(1, value.shape[0] / value.shape[1]) ** 0.5 * update
    return value


@pytest.mark.parametrize("shape", [(16, 16), (48, 12), (12, 48)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_follows_the_equations_for_twenty_steps(shape: tuple[int, int], decay: float) -> None:
    value, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(20)]
    torch.testing.assert_close(
        stepped(value, gradients, decay=decay).double(), reference(value, gradients, decay), rtol=1e-4, atol=1e-4
    )


def test_each_part_of_a_fused_projection_and_each_expert_is_a_matrix() -> None:
    value, gradient = torch.randn(3, 20, 8), torch.randn(3, 20, 8)
    parts = stepped(value, [gradient], parts=(12, 8))
    for expert in range(3):
        for rows in (slice(0, 12), slice(12, 20)):
            alone = stepped(value[expert, rows], [gradient[expert, rows]])
            torch.testing.assert_close(parts[expert, rows], alone, rtol=1e-5, atol=1e-6)
    whole = stepped(value, [gradient], parts=(12, 8), recipe=replace(PLAIN, split_fused=False))
    torch.testing.assert_close(whole[1], stepped(value[1], [gradient[1]]), rtol=1e-5, atol=1e-6)
    assert (whole - parts).abs().max() > 1e-3


def test_a_weight_stored_the_other_way_round_takes_the_same_step() -> None:
    value, gradients = torch.randn(12, 36), [torch.randn(12, 36) for _ in range(3)]
    turned = stepped(value.T.contiguous(), [gradient.T.contiguous() for gradient in gradients])
    found = stepped(value, gradients, transposed=True, parts=())
    torch.testing.assert_close(found, turned.T, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_gradient_stays() -> None:
    values = [nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
    before = [value.detach().clone() for value in values]
    optimizer = muon_of(values)
    values[0].grad = torch.randn(4, 4)
    optimizer.step()
    assert not torch.equal(values[0], before[0])
    assert torch.equal(values[1], before[1]) and optimizer.state[values[1]]["step"] == 0


def test_momentum_rises_and_falls_and_weight_decay_ends_at_zero() -> None:
    recipe = replace(PLAIN, momentum=0.97, momentum_end=0.9, steps=1000, cooldown=650, cosine_weight_decay=True)
    assert [recipe.momentum_at(step) for step in (0, 150, 300, 350)] == pytest.approx([0.85, 0.91, 0.97, 0.97])
    assert [recipe.momentum_at(step) for step in (675, 1000)] == pytest.approx([0.935, 0.9])
    assert [recipe.decay_at(step) for step in (0, 500, 1000)] == pytest.approx([1, 0.5, 0])
    assert PLAIN.decay_at(10**6) == 1 and PLAIN.momentum_at(10**6) == 0.95


def test_cautious_decay_spares_what_the_update_would_enlarge() -> None:
    value, gradient = torch.randn(8, 8), torch.randn(8, 8)
    free = stepped(value, [gradient])
    decayed = stepped(value, [gradient], decay=0.5, recipe=replace(PLAIN, cautious=True))
    same_sign = (value - free) * value >= 0
    torch.testing.assert_close(decayed, torch.where(same_sign, free - 0.01 * value, free), rtol=1e-5, atol=1e-6)


def test_equal_rows_make_the_scale_of_a_row_irrelevant() -> None:
    recipe = replace(PLAIN, equalize_rows=True)
    value, gradient = torch.zeros(6, 9), torch.randn(6, 9)
    louder = gradient * torch.tensor([1.0, 100.0, 1.0, 1.0, 0.01, 1.0])[:, None]
    torch.testing.assert_close(
        stepped(value, [louder], recipe=recipe), stepped(value, [gradient], recipe=recipe), rtol=1e-4, atol=1e-6
    )
    assert (stepped(value, [louder]) - stepped(value, [gradient])).abs().max() > 1e-3


def test_what_is_too_large_for_one_round_takes_several(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[torch.Tensor]:
        torch.manual_seed(0)
        values = [nn.Parameter(torch.randn(shape)) for shape in ((3, 12, 8), (8, 8), (12, 8))]
        optimizer = muon_of(values)
        for value in values:
            value.grad = torch.randn_like(value)
        optimizer.step()
        return [value.detach() for value in values]

    at_once = run()
    monkeypatch.setattr("flame.optim.exchange._ROUND", 200)
    stack, square = matrices_of(0, (3, 12, 8)), matrices_of(1, (8, 8))
    assert len(exchanges([*stack, *square], at_once)) == 2
    assert all(torch.equal(value, expected) for value, expected in zip(run(), at_once, strict=True))


def test_costs_are_shared_out_evenly() -> None:
    owners = share_out([5, 1, 1, 1, 1, 1, 8], 2)
    loads = [sum(cost for cost, owner in zip([5, 1, 1, 1, 1, 1, 8], owners, strict=True) if owner == r) for r in (0, 1)]
    assert loads == [9, 9]


def optimizer_of(*arguments: str) -> Any:
    config = parse(["--optimizer.name", "Muon", "--training.steps", "10", *arguments])
    layout: Any = None
    optimizers = build_optimizers([LlamaForCausalLM(LLAMA)], config, layout)
    schedule = build_lr_schedulers(optimizers, config.lr_scheduler, config.training.steps)
    return optimizers.optimizers[0], schedule


def test_groups_have_nanochats_learning_rates_and_betas() -> None:
    optimizer, _ = optimizer_of("--lr_scheduler.warmup_steps", "0", "--optimizer.scalar_betas", "[0.9, 0.99]")
    scale = math.sqrt(768 / 48)
    rates = {role: group["lr"] for role, group in zip(optimizer.roles, optimizer.param_groups, strict=True)}
    # Embeddings that start at 0.02 step by a fiftieth of what nanochat's do, which start at 1.
    assert rates == pytest.approx(
        {"matrices": 0.02, "embeddings": 0.2 * 0.02 * scale, "head": 0.004 * scale, "scalars": 0.005}
    )
    betas = [group.get("betas") for group in optimizer.param_groups]
    assert betas == [None, (0.8, 0.95), (0.8, 0.95), (0.9, 0.99)]
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)
    assert optimizer.param_groups[1]["eps"] == 1e-10


def test_without_width_scaling_rates_are_as_they_are_given() -> None:
    optimizer, _ = optimizer_of(
        "--lr_scheduler.warmup_steps", "0", "--no-optimizer.width-scaling", "--optimizer.embedding_lr", "0.2"
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.2, 0.004, 0.005]


def test_the_schedule_multiplies_every_groups_own_rate() -> None:
    optimizer, schedule = optimizer_of("--lr_scheduler.warmup_steps", "4", "--lr_scheduler.decay_ratio", "0")
    for step in range(6):
        share = min((step + 1) / 4, 1)
        rates = [group["lr"] / group["initial_lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([share] * 4)
        optimizer.step()
        schedule.step()
