"""How deep training goes: what is drawn, what it costs, what is watched."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from flame.config import JobConfig
from flame.data.batch import rows_of
from flame.errors import ConfigError
from flame.losses import IGNORE_INDEX
from flame.models.build import model_class, plain_model
from flame.models.config import fit_tokenizer, tiny_config
from flame.models.depths import SAMPLERS
from flame.plugin import load_plugin
from flame.tasks.base import seeded
from flame.tasks.recurrent_depth import RecurrentDepth, RecurrentDepthOptions, goldfish
from tests.runs import LLAMA, Materials, materials

__all__ = ["materials"]


def made(materials: Materials, job: JobConfig | None = None, **options: Any) -> RecurrentDepth:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    return RecurrentDepth(RecurrentDepthOptions(**options), tokenizer=tokenizer, config=job or JobConfig())


def checked(task: RecurrentDepth, **changes: Any) -> Any:
    """A model that the task has looked at; mean recurrence 4, of which 2 keep a graph."""
    plugin = load_plugin("huginn_raven")
    config = type(tiny_config(plugin))(**{**tiny_config(plugin).to_diff_dict(), **changes})
    fit_tokenizer(config, task.tokenizer)
    cls = model_class(plugin, config, "causal_lm")
    task.extend(cls, config)
    task.check(cls, config, plugin.documents)
    return plain_model(cls, config, seed=0)


def batch(task: RecurrentDepth, rows: int = 2, length: int = 16) -> tuple[dict[str, Any], torch.Tensor]:
    ids = torch.randint(5, len(task.tokenizer), (rows, length + 1), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids[:, :-1].clone()}, ids[:, 1:].clone()


def drawn(sampler: str, mean: int = 32, last: int = 8, count: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.tensor([SAMPLERS[sampler](mean, last, generator) for _ in range(count)], dtype=torch.float)


def test_the_default_sampler_is_the_papers() -> None:
    """Mean 33, median 29, mode 24 at a mean recurrence of 32: a Poisson distribution with a log-normal mean, plus 1."""
    steps = drawn("poisson_lognormal_filling")
    total = steps.sum(1)
    assert total.mean().item() == pytest.approx(33, abs=1) and total.median().item() == pytest.approx(29, abs=1)
    assert torch.equal(steps[:, 1], total.clamp_max(8)) and torch.equal(steps[:, 0], (total - 8).clamp_min(0))
    # Poisson plus log-normal: m + m^2 (exp(1/4) - 1)
    assert total.std().item() == pytest.approx((32 + 32**2 * 0.2840) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("sampler", "before", "spread", "last"),
    [
        ("poisson_lognormal_fill", 24, (24 + 24**2 * 0.2840) ** 0.5, 8),
        ("poisson_lognormal", 24, (24 + 24**2 * 0.2840) ** 0.5, 8.5),
        ("poisson_fill", 24, 24**0.5, 8),
        ("poisson_unbounded", 24, 24**0.5, 8.5),
        ("poisson_bounded", 24, 24**0.5, 8.5),
        ("negative_binomial", 24, 48**0.5, 8.5),
        ("geometric", 24, (24 * 23) ** 0.5, 8.5),
        ("uniform", 23.5, 48 / 12**0.5, 8.5),
        ("fixed", 24, 0, 8),
        ("full", 0, 0, 8.5),
        ("non_recurrent", 0, 0, 1),
    ],
)
def test_samplers_have_their_mean_and_spread(sampler: str, before: float, spread: float, last: float) -> None:
    steps = drawn(sampler)
    assert steps[:, 0].mean().item() == pytest.approx(before, rel=0.06)
    assert steps[:, 0].std().item() == pytest.approx(spread, rel=0.1)
    assert steps[:, 1].mean().item() == pytest.approx(last, rel=0.03)
    assert steps[:, 0].min() >= 0 and steps[:, 1].min() >= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mean_of_one_step_is_a_depth_too(sampler: str) -> None:
    steps = drawn(sampler, mean=1, last=1, count=50)
    assert steps.min() >= 0 and steps.sum(1).min() >= 1


def test_ranks_and_resumed_steps_draw_alike(materials: Materials) -> None:
    tasks = [made(materials) for _ in range(2)]
    depths = [[task.draw(seeded(0, step, -1))["num_steps"] for step in range(20)] for task in tasks]
    assert depths[0] == depths[1] and len(set(depths[0])) > 5
    assert tasks[0].draw(seeded(0, 7, -1))["num_steps"] == depths[0][7]


def test_curricula_grow_and_sobol_spreads(materials: Materials) -> None:
    task = made(materials, sampler="fixed", curriculum_steps=10)
    checked(task, mean_recurrence=20, mean_backprop_depth=4)
    depths = []
    for task.step in (0, 5, 10, 15):
        depths.append(task.draw(seeded(0))["num_steps"])
    assert depths == [(0, 1), (8, 2), (16, 4), (16, 4)]
    sobol = made(materials, sampler="sobol")
    found = []
    for sobol.step in range(64):
        found.append(sobol.draw(seeded(0))["num_steps"])
    # 64 points of a Sobol sequence fall evenly: 16 into each quarter of 0 ... 47.
    assert [sum(low <= n < low + 12 for n, _ in found) for low in (0, 12, 24, 36)] == [16, 16, 16, 16]
    assert [sum(k == value for _, k in found) for value in range(1, 17)] == [4] * 16


def test_depths_come_from_the_model_unless_the_job_says_otherwise(materials: Materials) -> None:
    task = made(materials)
    checked(task)
    assert (task.mean, task.last, task.sampler) == (4, 2, "poisson_lognormal_filling")
    assert task.variants()[""] == {"num_steps": 4} and task.variants()["r16"] == {"num_steps": 16}
    task = made(materials, mean_recurrence=6, backprop_depth=3, sampler="fixed", validation_depths=[2])
    checked(task)
    exported = checked(task).config
    assert (exported.mean_recurrence, exported.mean_backprop_depth, exported.sampling_scheme) == (6, 3, "fixed")
    assert task.draw(seeded(0)) == {"num_steps": (3, 3)} and list(task.variants()) == ["", "r2"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"mean_recurrence": 4, "backprop_depth": 8, "sampler": "poisson_fill"},
            "set task.backprop_depth to at most 4",
        ),
        ({"mean_recurrence": 9, "sampler": "full"}, "sampler 'full' draws up to twice backprop_depth = 2"),
        ({"mean_recurrence": 9, "sampler": "non_recurrent"}, "'non_recurrent' runs one step"),
    ],
)
def test_depths_that_a_sampler_would_not_heed_are_refused(
    materials: Materials, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        checked(made(materials, **options))


def test_a_sampler_of_the_config_that_does_not_exist_is_found_there(materials: Materials) -> None:
    with pytest.raises(ConfigError, match="sampling_scheme of the model config 'poison_fill' is none of"):
        checked(made(materials), sampling_scheme="poison-fill")


@pytest.mark.parametrize("sampler", ["poisson_lognormal_filling", "uniform", "sobol", "full"])
@pytest.mark.parametrize("injection", ["linear", "none"])
def test_a_budget_of_flops_knows_the_mean_of_the_drawn_depths(
    materials: Materials, sampler: str, injection: str
) -> None:
    task = made(materials, sampler=sampler)
    config = checked(
        task, mean_recurrence=8, mean_backprop_depth=8 if sampler == "full" else 3, injection_type=injection
    ).config
    work = []
    for task.step in range(8000):
        depth = task.draw(seeded(1, task.step))
        work.append(task.work({"input_ids": torch.zeros(1, task.config.training.seq_len), **depth}))
    assert task.mean_work(config) == pytest.approx(sum(work) / len(work), rel=0.03)


def test_a_family_without_a_core_is_refused(materials: Materials) -> None:
    task = made(materials)
    plugin, config = load_plugin("llama"), AutoConfig.for_model(**LLAMA)
    with pytest.raises(ConfigError, match="causal_lm"):
        task.extend(model_class(plugin, config, "causal_lm"), config)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sampler": "poison_fill"}, "poisson_fill"),
        ({"backprop_depth": -1}, "task.backprop_depth"),
        ({"goldfish_every": 1}, "task.goldfish_every"),
        ({"validation_depths": [0, 4]}, "task.validation_depths"),
    ],
)
def test_options_that_make_no_sense_are_refused(materials: Materials, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        made(materials, **options)


def test_the_loss_is_that_of_the_drawn_depth_and_seeds(materials: Materials) -> None:
    task = made(materials)
    model = checked(task)
    inputs, labels = task.prepare({**batch(task)[0], "num_steps": (3, 2)}, batch(task)[1], seeded(1))
    loss = task.loss_sum(model, inputs, labels)
    logits = model(inputs["input_ids"], num_steps=(3, 2), state_seeds=inputs["state_seeds"]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert task.loss_in_head  # so no logits of all positions
    other = task.loss_sum(model, {**inputs, "num_steps": (0, 1)}, labels)
    assert not torch.isclose(loss, other, rtol=1e-4)


def test_rows_and_parts_of_rows_keep_their_seeds(materials: Materials) -> None:
    task = made(materials)
    model = checked(task).eval()
    both = task.prepare_rows(({**batch(task)[0], "num_steps": (3, 2)}, batch(task)[1]), [seeded(0), seeded(1)])
    assert both[0]["state_seeds"].shape == (2, 16) and both[0]["state_seeds"].dtype == torch.int64
    whole = task.loss_sum(model, *both)
    parts = [task.loss_sum(model, *rows_of(both, slice(row, row + 1))) for row in range(2)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    cut = [{**both[0], "input_ids": both[0]["input_ids"][:, :9], "state_seeds": both[0]["state_seeds"][:, :9]}]
    first = task.loss_sum(model, cut[0], both[1][:, :9])
    rest = both[1].clone()
    rest[:, 9:] = IGNORE_INDEX
    torch.testing.assert_close(first, task.loss_sum(model, both[0], rest))


def test_work_counts_steps_with_a_graph_three_times(materials: Materials) -> None:
    task = made(materials)
    model = checked(task)
    inputs, length = batch(task)[0], 16
    outer, core = model.config.outer_flops(length), model.config.core_flops(length)
    assert task.work(inputs) == 1.0 == task.work({**inputs, "num_steps": (0, 4)})
    for no_grad, grad in ((0, 1), (2, 2), (9, 2)):
        flops = 3 * outer + no_grad * core + 3 * grad * core
        assert task.work({**inputs, "num_steps": (no_grad, grad)}) == pytest.approx(flops / (3 * (outer + 4 * core)))


def test_what_is_observed_is_of_training(materials: Materials) -> None:
    task = made(materials)
    model = checked(task)
    inputs, labels = task.prepare({**batch(task)[0], "num_steps": (1, 2)}, batch(task)[1], seeded(1))
    task.loss_sum(model, inputs, labels)
    seen = task.observed()
    assert seen["num_steps"] == 3 and -0.2 < seen["token_correlation"] < 0.5 and seen["step_residual"] > 0
    with torch.no_grad():
        task.loss_sum(model, {**inputs, "num_steps": 16}, labels)  # as validation does
    assert task.observed() == seen


def test_alarms_ring_for_collapse_and_for_an_idle_state(materials: Materials) -> None:
    task = made(materials)
    assert task.examine({"loss": 3.0, "token_correlation": 0.89}) == []
    assert "0.95" in task.examine({"loss": 3.0, "token_correlation": 0.95})[0]
    depths = {"val_loss_r1": 3.5, "val_loss_r4": 3.1, "val_loss_r32": 3.0}
    assert task.examine(depths) == []
    for first in (3.0, 2.9, 3.002):
        assert "32 steps predict no better than 1" in task.examine({**depths, "val_loss_r1": first})[0]


def test_goldfish_leaves_out_the_same_tokens_wherever_they_stand(materials: Materials) -> None:
    ids = torch.randint(0, 300, (4, 4096), generator=torch.Generator().manual_seed(0))
    dropped = goldfish(ids, 4)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.01) and not dropped[:, :12].any()
    moved = torch.cat([ids[:, 100:], ids[:, :100]], 1)
    assert torch.equal(goldfish(moved, 4)[:, 12:3996], dropped[:, 112:])
    assert not goldfish(ids[:, :5], 4).any()
    task = made(materials, goldfish_every=4)
    inputs, labels = batch(task, length=600)
    training = task.prepare({**inputs, "num_steps": (0, 1)}, labels, seeded(0))[1]
    assert torch.equal(training == IGNORE_INDEX, goldfish(inputs["input_ids"], 4)) and (training == IGNORE_INDEX).any()
    assert torch.equal(task.prepare(inputs, labels, seeded(0))[1], labels)  # validation scores all


def test_goldfish_takes_no_notice_of_the_document_before(materials: Materials) -> None:
    text, others = torch.randint(5, 300, (3, 60), generator=torch.Generator().manual_seed(2)).split((1, 2))
    task = made(materials, goldfish_every=2)
    dropped = []
    for other, length in ((others[:1], 9), (others[1:], 9), (others[1:], 31)):
        row = torch.cat([other[:, :length], text], 1)
        positions = torch.cat([torch.arange(length), torch.arange(60)]).unsqueeze(0)
        inputs = {"input_ids": row, "position_ids": positions, "num_steps": (0, 1)}
        labels = task.prepare(inputs, row.clone(), seeded(0))[1]
        dropped.append((labels == IGNORE_INDEX)[:, length:])
    assert dropped[0].any() and not dropped[0][:, :12].any()
    assert torch.equal(dropped[0], goldfish(text, 2))
    assert torch.equal(dropped[0], dropped[1]) and torch.equal(dropped[0], dropped[2])
