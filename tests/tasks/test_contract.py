"""What every task keeps; a new file in ``flame/tasks/`` is tested by being there."""

import pickle
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from flame.config import JobConfig, TaskOptions
from flame.losses import IGNORE_INDEX
from flame.models.build import model_class, plain_model
from flame.models.config import fit_tokenizer, tiny_config
from flame.plugin import load_plugin, load_task, tasks
from flame.tasks.base import Task
from tests.runs import LLAMA, Materials, materials

__all__ = ["materials"]


@pytest.fixture(params=tasks())
def task(request: pytest.FixtureRequest, materials: Materials) -> Task:
    task_class = load_task(request.param)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    return task_class(task_class.Options(), tokenizer=tokenizer, config=JobConfig())


@pytest.fixture
def model(task: Task) -> torch.nn.Module:
    plugin = load_plugin("llama")
    if task.head not in plugin.auto_classes:
        pytest.skip(f"llama has no head '{task.head}'")
    config = AutoConfig.for_model(**LLAMA)
    fit_tokenizer(config, task.tokenizer)
    cls = model_class(plugin, config, task.head)
    task.check(cls, config, plugin.documents)
    return plain_model(cls, config, seed=0)


def batch(task: Task, rows: int = 4, length: int = 16) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, len(task.tokenizer), (rows, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[0] = IGNORE_INDEX
    labels[1, ::2] = IGNORE_INDEX
    return {"input_ids": ids[:, :-1].clone()}, labels


def prepared(task: Task, rows: slice = slice(None), seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs, labels = batch(task)
    inputs = {name: value[rows] for name, value in inputs.items()}
    return task.prepare(inputs, labels[rows], torch.Generator().manual_seed(seed))


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
            task.loss_sum(model, inputs, labels), task.loss(model(**inputs), labels, inputs), rtol=1e-5, atol=1e-4
        )


def test_the_loss_is_a_sum_over_rows(task: Task, model: torch.nn.Module) -> None:
    """Otherwise accumulation and data parallelism would depend on how rows are grouped."""
    model.eval()
    inputs, labels = prepared(task)
    with torch.no_grad():
        whole = task.loss_sum(model, inputs, labels)
        parts = [
            task.loss_sum(model, {name: value[row : row + 1] for name, value in inputs.items()}, labels[row : row + 1])
            for row in range(len(labels))
        ]
    torch.testing.assert_close(whole, torch.stack(parts).sum(), rtol=1e-5, atol=1e-4)


def test_rows_without_labels_have_no_loss(task: Task, model: torch.nn.Module) -> None:
    inputs, labels = batch(task)
    loss = task.loss_sum(model, inputs, torch.full_like(labels, IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_what_is_drawn_depends_on_the_generator_alone(task: Task) -> None:
    first, second = prepared(task), prepared(task)
    assert torch.equal(first[1], second[1])
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])


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
    if task.head in plugin.auto_classes:
        task.check(model_class(plugin, config := tiny_config(plugin), task.head), config, "cu_seqlens")
