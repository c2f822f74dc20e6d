"""What every task on text keeps; a new file in ``flame/tasks/`` is tested by being there. Those on recordings and
series are in ``tests/plugins/test_example_families.py``."""

import pickle
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

from flame.config import JobConfig, TaskOptions
from flame.data.batch import Batch, is_tensor, rows_of
from flame.losses import IGNORE_INDEX
from flame.models.build import model_class, plain_model
from flame.models.config import fit_tokenizer, tiny_config
from flame.plugin import ModelPlugin, custom_families, load_plugin, load_task, tasks
from flame.tasks.base import Task, seeded
from tests.runs import LLAMA, Materials, materials

__all__ = ["materials"]


TEXT = [name for name in tasks() if load_task(name).Options.formats == TaskOptions.formats]  # type: ignore[attr-defined]


@pytest.fixture(params=TEXT)
def task(request: pytest.FixtureRequest, materials: Materials) -> Task:
    task_class = load_task(request.param)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    return task_class(task_class.Options(), tokenizer=tokenizer, config=JobConfig())


def family_of(task: Task) -> tuple[ModelPlugin, PreTrainedConfig]:
    """A family that the task trains: Llama, or the first custom one with the objective."""
    if "autoregressive" in task.objectives and task.head == "causal_lm":
        return load_plugin("llama"), AutoConfig.for_model(**LLAMA)
    for plugin in map(load_plugin, custom_families()):
        if plugin.objective in task.objectives and task.head in plugin.auto_classes:
            return plugin, tiny_config(plugin)
    pytest.fail(f"no family for task '{task.options.name}'")


@pytest.fixture
def model(task: Task) -> torch.nn.Module:
    plugin, config = family_of(task)
    fit_tokenizer(config, task.tokenizer)
    cls = model_class(plugin, config, task.head)
    task.check(cls, config, plugin.documents)
    return plain_model(cls, config, seed=0)


def batch(task: Task, rows: int = 4, length: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, len(task.tokenizer), (rows, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[0] = IGNORE_INDEX
    labels[1, ::2] = IGNORE_INDEX
    return {"input_ids": ids[:, :-1].clone()}, labels


def prepared(task: Task, seed: int = 0) -> Batch:
    inputs, labels = batch(task)
    generator = torch.Generator().manual_seed(seed)
    return task.prepare({**inputs, **task.draw(generator)}, labels, generator)


def test_options_are_a_dataclass_that_carries_the_tasks_name() -> None:
    for name in tasks():
        options: Any = load_task(name).Options  # type: ignore[attr-defined]
        assert issubclass(options, TaskOptions) and is_dataclass(options)
        assert options().name == name
        assert next(iter(fields(options))).name == "name"


def test_the_encoder_travels_to_worker_processes(task: Task) -> None:
    encoder = pickle.loads(pickle.dumps(task.encoder()))
    records: list[dict[str, Any]] = [{"text": "the cat sees"}, {"text": "a"}]
    encoded = encoder.encode(records)
    assert len(encoded) == 2 and all(len(ids) for ids in encoded)
    again = task.encoder().encode(records)
    assert all((ids == other).all() for ids, other in zip(encoded, again, strict=True))


def test_the_loss_is_a_finite_float32_scalar_with_gradients(task: Task, model: torch.nn.Module) -> None:
    inputs, labels = prepared(task)
    loss = task.loss_sum(model, inputs, labels)
    assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_fusing_the_loss_with_the_model_changes_nothing(task: Task, model: torch.nn.Module) -> None:
    model.eval()
    inputs, labels = prepared(task)
    with torch.no_grad():
        torch.testing.assert_close(
            task.loss_sum(model, dict(inputs), labels),
            task.loss(model(**task.model_inputs(dict(inputs))), labels, inputs),
            rtol=1e-5,
            atol=1e-4,
        )


def test_the_loss_is_a_sum_over_rows(task: Task, model: torch.nn.Module) -> None:
    """Otherwise accumulation and data parallelism would depend on how rows are grouped."""
    model.eval()
    inputs, labels = prepared(task)
    with torch.no_grad():
        whole = task.loss_sum(model, inputs, labels)
        parts = [task.loss_sum(model, *rows_of((inputs, labels), slice(row, row + 1))) for row in range(len(labels))]
    torch.testing.assert_close(whole, torch.stack(parts).sum(), rtol=1e-5, atol=1e-4)


def test_rows_without_labels_have_no_loss(task: Task, model: torch.nn.Module) -> None:
    inputs, labels = batch(task)
    inputs, labels = task.prepare(inputs, torch.full_like(labels, IGNORE_INDEX), torch.Generator().manual_seed(0))
    loss = task.loss_sum(model, inputs, labels)
    loss.backward()
    assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_what_is_drawn_depends_on_the_generator_alone(task: Task) -> None:
    first, second = prepared(task), prepared(task)
    assert torch.equal(first[1], second[1])
    for name, value in first[0].items():
        assert torch.equal(value, second[0][name]) if is_tensor(value) else value == second[0][name]


def test_a_rows_noise_does_not_depend_on_its_neighbours(task: Task) -> None:
    whole, labels = task.prepare_rows(batch(task), [seeded(row) for row in range(4)])
    alone, own = task.prepare_rows(rows_of(batch(task), slice(2, 3)), [seeded(2)])
    assert torch.equal(labels[2:3], own)
    for name, value in alone.items():
        assert not is_tensor(value) or torch.equal(whole[name][2:3], value), name


def test_counts_add_up_over_rows_and_reports_are_numbers(task: Task) -> None:
    _, labels = batch(task)
    counts = {name: float(value) for name, value in task.counts(labels).items()}
    parts = [task.counts(labels[row : row + 1]) for row in range(len(labels))]
    assert counts == {name: sum(float(part[name]) for part in parts) for name in counts}
    report = task.report(2.0, float((labels != IGNORE_INDEX).sum()), counts)
    assert all(isinstance(value, float) for value in report.values())
    task.report(0.0, 0.0, dict.fromkeys(counts, 0.0))  # nothing scored is no error


def test_a_packed_family_of_borders_is_accepted(task: Task) -> None:
    plugin = load_plugin("gla")
    if plugin.objective in task.objectives and task.head in plugin.auto_classes:
        task.check(model_class(plugin, config := tiny_config(plugin), task.head), config, "cu_seqlens")
