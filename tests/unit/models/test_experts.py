"""Balancing experts: which routers are found, what moves their biases, and the gradient of the balance loss."""

import copy
from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AutoConfig, PreTrainedModel

from flame.config import Moe
from flame.errors import ConfigError
from flame.models.balance import SCORES, fitting_scores, routing_of, sequence_balance
from flame.models.build import model_class, plain_model
from flame.models.config import shrink
from flame.models.experts import BIAS, Experts, check_experts, find_routers
from flame.plugin import load_plugin

ROWS, LENGTH = 4, 12


def small(model_type: str = "deepseek_v3", seed: int = 0, **options: int) -> Any:
    plugin = load_plugin(model_type)
    # V2's default config does not say how many experts a token gets.
    asked = {"num_experts_per_tok": 2} if model_type == "deepseek_v2" else {}
    config = shrink(AutoConfig.for_model(model_type, **asked))
    for name, value in options.items():
        setattr(config, name, value)
    model = plain_model(model_class(plugin, config, "causal_lm"), config, seed).train()
    for router in find_routers(model):
        for parameter in router.module.parameters():
            parameter.data.mul_(20)  # a fresh router gives all experts nearly the same score
    return model


def tokens(model: PreTrainedModel, rows: int = ROWS, skewed: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.vocab_size
    if not skewed:
        return torch.randint(vocabulary, (rows, LENGTH), generator=generator)
    frequencies = 1 / torch.arange(1, vocabulary + 1)
    return torch.multinomial(frequencies.expand(rows, -1), LENGTH, replacement=True, generator=generator)


def watch(model: PreTrainedModel, rate: float = 1e-3, loss: float = 0.0, rows: int = ROWS) -> Experts:
    return Experts(find_routers(model), Moe(rate, loss), rows, LENGTH)


def biases(model: PreTrainedModel) -> list[torch.Tensor]:
    held = [*model.named_buffers(), *model.named_parameters()]  # parameters in Ernie
    return [value.detach().clone() for name, value in held if name.endswith(BIAS)]


@pytest.mark.parametrize("model_type", ["deepseek_v3", "glm4_moe", "minimax_m2", "nemotron_h", "ernie4_5_moe"])
def test_finds_routers_with_a_bias_in_whatever_family_has_one(model_type: str) -> None:
    model = small(model_type)
    experts, before = watch(model), biases(model)
    model(input_ids=tokens(model))
    experts.end_step(accepted=True)
    assert before and len(experts.routers) == len(before)
    for old, new in zip(before, biases(model), strict=True):
        assert new.dtype == torch.float32
        assert not torch.equal(old, new)


@pytest.mark.parametrize("model_type", ["deepseek_v2", "mixtral", "qwen3_moe", "olmoe"])
def test_finds_routers_without_a_bias_and_reports_their_load(model_type: str) -> None:
    model = small(model_type)
    experts = watch(model)
    model(input_ids=tokens(model))
    experts.end_step(accepted=True)
    assert experts.routers
    assert not biases(model)
    assert experts.figures()["expert_load"] >= 1


def test_a_model_without_experts_has_no_figures() -> None:
    model = small("llama")
    experts = watch(model)
    model(input_ids=tokens(model))
    experts.end_step(accepted=True)
    assert experts.figures() == {}


@pytest.mark.parametrize(
    ("model_type", "options", "said"),
    [
        ("llama", Moe(sequence_balance_loss=0.1), "moe.sequence_balance_loss = 0.1: flame finds no router.*'llama'"),
        ("llama", Moe(bias_update_rate=0.01), "moe.bias_update_rate = 0.01: flame finds no router"),
        ("mixtral", Moe(bias_update_rate=0.01), "'mixtral' have no bias; use moe.sequence_balance_loss"),
    ],
)
def test_options_that_nothing_heeds_are_refused(model_type: str, options: Moe, said: str) -> None:
    model = small(model_type)
    with pytest.raises(ConfigError, match=said):
        check_experts(type(model), model.config, options)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", Moe()),
        ("llama", Moe(bias_update_rate=0.0)),
        ("mixtral", Moe(sequence_balance_loss=0.1)),
        ("deepseek_v3", Moe(0.01, 0.1)),
    ],
)
def test_options_that_something_heeds_are_not(model_type: str, options: Moe) -> None:
    model = small(model_type)
    check_experts(type(model), model.config, options)


def test_the_bias_moves_by_the_sign_of_what_is_missing_to_the_mean_load() -> None:
    model = small()
    experts = watch(model, rate=0.01)
    router = experts.routers[0]
    seen: list[torch.Tensor] = []
    router.module.register_forward_hook(lambda module, args, output: seen.append(output[2]))
    model(input_ids=tokens(model))
    experts.end_step(accepted=True)
    assert router.bias is not None
    load = torch.bincount(seen[0].flatten(), minlength=len(router.bias)).float()
    assert torch.equal(router.bias, 0.01 * torch.sign(load.mean() - load))
    assert experts.figures()["expert_load"] >= (load.max() / load.mean()).item() - 1e-6


def test_a_rejected_step_changes_nothing_and_forgets_its_loads() -> None:
    model, other = small(), small()
    experts, fresh = watch(model), watch(other)
    model(input_ids=tokens(model).flip(0))
    model(input_ids=tokens(model) // 2)
    experts.end_step(accepted=False)
    assert all(not bias.any() for bias in biases(model))
    for each, watched in ((model, experts), (other, fresh)):
        each(input_ids=tokens(each))
        watched.end_step(accepted=True)
    assert experts.figures() == fresh.figures()
    assert all(map(torch.equal, biases(model), biases(other)))


def test_a_rate_of_zero_leaves_the_bias() -> None:
    model = small()
    experts = watch(model, rate=0.0)
    model(input_ids=tokens(model))
    experts.end_step(accepted=True)
    assert all(not bias.any() for bias in biases(model))


def test_validation_counts_for_nothing() -> None:
    model = small()
    experts = watch(model)
    model.eval()
    model(input_ids=tokens(model))
    assert all(router.load is None for router in experts.routers)


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_recomputed_layers_count_once_and_have_the_same_gradients(loss: float) -> None:
    plain, recomputed = small(), small()
    layers = recomputed.get_decoder().layers
    for index, layer in enumerate(layers):
        layers[index] = checkpoint_wrapper(layer)
    watched = [watch(model, loss=loss) for model in (plain, recomputed)]
    for model in (plain, recomputed):
        model(input_ids=tokens(model)).logits.square().sum().backward()
    assert [router.name for router in watched[0].routers] == [router.name for router in watched[1].routers]
    for first, second in zip(watched[0].routers, watched[1].routers, strict=True):
        assert torch.equal(first.load, second.load)  # type: ignore[arg-type]
    for first, second in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None)
        assert first.grad is None or torch.allclose(first.grad, second.grad, atol=1e-6)  # type: ignore[arg-type]
    for each in watched:
        each.end_step(accepted=True)
    assert watched[0].figures() == pytest.approx(watched[1].figures(), rel=1e-6)


def test_micro_batches_count_together() -> None:
    whole, parts = small(), small()
    watched = [watch(model) for model in (whole, parts)]
    whole(input_ids=tokens(whole))
    for rows in tokens(parts).split(1):
        parts(input_ids=rows)
    for each in watched:
        each.end_step(accepted=True)
    assert watched[0].figures() == watched[1].figures()
    assert all(map(torch.equal, biases(whole), biases(parts)))


@torch.no_grad()
def test_the_bias_evens_out_the_load_of_skewed_data() -> None:
    model = small(num_hidden_layers=3, n_routed_experts=8, n_group=1)
    experts = watch(model, rate=0.01, rows=64)
    # All hidden states share a direction, and two experts like it.
    model.get_input_embeddings().weight.add_(0.02)
    for router in experts.routers:
        router.module.weight[:2] += 0.1  # type: ignore[index]
    loads = []
    for _ in range(120):
        model(input_ids=tokens(model, rows=64, skewed=True))
        experts.end_step(accepted=True)
        loads.append(experts.figures()["expert_load"])
    assert loads[0] > 2
    assert max(loads[-10:]) < 1.5


def test_the_bias_is_no_parameter_and_is_saved() -> None:
    model = small()
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if BIAS in name]
    assert [name for name in model.state_dict() if name.endswith(BIAS)] == [
        name for name, _ in model.named_buffers() if name.endswith(BIAS)
    ]


def test_sequence_balance_is_the_sum_of_the_equation() -> None:
    scores, top_k = torch.rand(2 * 5, 6, generator=torch.Generator().manual_seed(0)), 2
    expected = []
    for sequence in scores.view(2, 5, 6):
        total = 0.0
        for expert in range(6):
            frequency = sum(float(expert in row.topk(top_k).indices) for row in sequence) * 6 / (top_k * 5)
            total += frequency * sum(float(row[expert] / row.sum()) for row in sequence) / 5
        expected.append(total)
    assert sequence_balance(scores, top_k, 5).tolist() == pytest.approx(expected, rel=1e-5)


def test_sequence_balance_is_one_for_an_even_load() -> None:
    scores = torch.eye(4).repeat(3, 1) + 1e-3
    assert sequence_balance(scores, 1, 4).tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("model_type", ["deepseek_v3", "deepseek_v2", "minimax_m2", "mixtral"])
def test_the_balance_loss_adds_its_gradient_and_leaves_the_loss(model_type: str) -> None:
    model = small(model_type)
    plain, weight = copy.deepcopy(model), 0.3
    ids = tokens(model)
    # The same by hand: logits seen by a hook, the equation, and its sum over layers added to the loss.
    seen: list[Any] = []
    routers = find_routers(plain)
    for router in routers:
        router.module.register_forward_hook(lambda module, args, output: seen.append(output))
    loss = plain(input_ids=ids).logits.square().mean()
    parts = [routing_of(output) for output in seen]
    kind = SCORES["softmax" if model_type in ("deepseek_v2", "mixtral") else "sigmoid"]
    balance = torch.stack(
        [
            sequence_balance(kind(part.logits), part.chosen.shape[-1], LENGTH).mean()
            for part in parts
            if part and part.logits is not None
        ]
    ).sum()
    (loss + weight * balance).backward()

    experts = watch(model, loss=weight)
    watched = model(input_ids=ids).logits.square().mean()
    watched.backward()
    experts.end_step(accepted=True)
    assert torch.equal(watched, loss)
    assert experts.figures()["balance_loss"] == pytest.approx(weight * balance.item(), rel=1e-5)
    for (name, right), found in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert (right.grad is None) == (found.grad is None), name
        assert right.grad is None or torch.allclose(found.grad, right.grad, rtol=1e-4, atol=1e-7), name


def test_the_balance_loss_does_not_depend_on_micro_batches() -> None:
    whole, parts = small(), small()
    watched = [watch(model, loss=0.5) for model in (whole, parts)]
    whole(input_ids=tokens(whole)).logits.square().sum().backward()
    for rows in tokens(parts).split(1):
        parts(input_ids=rows).logits.square().sum().backward()
    for each in watched:
        each.end_step(accepted=True)
    assert watched[0].figures() == pytest.approx(watched[1].figures())
    for first, second in zip(whole.parameters(), parts.parameters(), strict=True):
        if first.grad is not None and second.grad is not None:
            assert torch.allclose(first.grad, second.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "expected"), [("deepseek_v3", "sigmoid"), ("deepseek_v2", "softmax"), ("mixtral", "softmax")]
)
def test_the_score_function_is_read_off_the_weights(model_type: str, expected: str) -> None:
    model = small(model_type)
    router = find_routers(model)[0]
    seen: list[list[str]] = []
    router.module.register_forward_hook(lambda module, args, output: seen.append(fitting_scores(routing_of(output))))  # type: ignore[arg-type]
    model(input_ids=tokens(model))
    assert seen == [[expected]]
