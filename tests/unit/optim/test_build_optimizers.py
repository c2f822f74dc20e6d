"""Groups of AdamW, and the state of optimizers that have not stepped yet."""

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from flame.config import JobConfig, parse
from flame.optim import build_lr_schedulers, build_optimizers
from tests.unit.optim.test_muon import LLAMA


def built(*arguments: str) -> Any:
    layout: Any = None
    return build_optimizers([LlamaForCausalLM(LLAMA)], parse([*arguments]), layout)


def test_adamw_decays_everything_in_one_group_unless_told_otherwise() -> None:
    (optimizer,) = built().optimizers
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (8e-4, (0.9, 0.95), 1e-8, 0.1)


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_adamw_spares_what_it_is_told_to(name: str) -> None:
    words = ["--optimizer.weight_decay", "0.1", "--optimizer.no_decay", "scalars,embeddings"]
    (optimizer,) = built("--optimizer.name", name, *words).optimizers
    decays = [(group["weight_decay"], {value.ndim for value in group["params"]}) for group in optimizer.param_groups]
    assert decays == [(0.1, {2}), (0.0, {2}), (0.1, {2}), (0.0, {1})]  # matrices, embeddings, head, scalars
    assert {group["lr"] for group in optimizer.param_groups} == {8e-4}


@pytest.mark.parametrize("name", ["Muon", "ELLISAdam"])
def test_saving_before_the_first_step_counts_no_step(name: str) -> None:
    """As after steps that the guard left out; torch makes missing state by a step."""
    optimizers = built("--optimizer.name", name)
    before = [value.detach().clone() for value in optimizers.model_parts[0].parameters()]
    state = optimizers.state_dict()
    steps = {float(value) for key, value in state.items() if key.endswith(".step")}
    assert steps == {0.0}
    optimizers.load_state_dict(state)
    after = optimizers.model_parts[0].parameters()
    assert all(torch.equal(value, old) for value, old in zip(after, before, strict=True))
    assert {float(entry["step"]) for entry in optimizers.optimizers[0].state.values()} == {0.0}


@pytest.mark.parametrize("name", ["Muon", "ELLISAdam"])
def test_state_by_names_goes_from_one_optimizer_to_another(name: str) -> None:
    torch.manual_seed(0)
    first, second = built("--optimizer.name", name), built("--optimizer.name", name)
    for _ in range(2):
        for value in first.model_parts[0].parameters():
            value.grad = torch.randn_like(value)
        first.step()
    second.load_state_dict(first.state_dict())
    found, expected = second.state_dict(), first.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value)) if key.startswith("state") else True
    assert any(key.endswith("momentum_buffer") for key in found) == (name == "Muon")


@pytest.mark.parametrize("name", ["AdamW", "ELLISAdam"])
def test_a_resumed_run_goes_by_its_own_job(name: str) -> None:
    """A checkpoint holds the learning rate and betas it was saved with as well."""
    words = ["--optimizer.name", name]
    first = built(*words, "--optimizer.lr", "1e-3")
    build_lr_schedulers(first, JobConfig().lr_scheduler, 10)
    saved = first.state_dict()
    second = built(*words, "--optimizer.lr", "5e-5", "--optimizer.beta2", "0.9")
    schedule = build_lr_schedulers(second, JobConfig().lr_scheduler, 10).schedulers[0]
    second.load_state_dict(saved)
    for group in second.optimizers[0].param_groups:
        assert group["initial_lr"] == 5e-5 and group["betas"][1] == 0.9
    assert schedule.get_last_lr()[0] <= 5e-5
