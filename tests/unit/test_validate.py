import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flame.config import JobConfig
from flame.parallel.layout import Layout
from flame.parallel.passes import Passes
from flame.tasks.base import Task
from flame.validate import Validator

ROWS = 7


class CountingModel(torch.nn.Module):
    """Knows how often it ran, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []


class RowTask(Task):
    """The loss of a scored label is its own value."""

    def __init__(self) -> None:
        """Needs no job."""

    def loss_sum(self, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        model.modes.append(model.training)
        return labels[labels != -100].sum().float()

    def counts(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"bytes": (labels != -100).sum() * 3}

    def report(self, loss: float, valid: float, counts: dict[str, float]) -> dict[str, float]:
        return {"bpb": loss * valid / counts["bytes"]}


class Batches:
    """Rows whose labels are their number; row r has r + 1 of them."""

    def __init__(self) -> None:
        self.passes = 0
        self.closed = False

    def __iter__(self):
        self.passes += 1
        for row in range(ROWS):
            labels = torch.full((1, 8), -100)
            labels[0, : row + 1] = row
            yield {"input_ids": torch.zeros(1, 8, dtype=torch.long)}, labels

    def close(self) -> None:
        self.closed = True


def validator(steps: int = -1, freq: int = 10) -> tuple[Validator, CountingModel, Batches, list[Any]]:
    config = JobConfig()
    config.validation.steps, config.validation.freq = steps, freq
    config.validation.local_batch_size = 1
    config.training.global_batch_size, config.training.steps = 2, 25
    reports: list[Any] = []
    metrics = SimpleNamespace(log_validation=lambda loss, step, figures: reports.append((step, loss, dict(figures))))
    batches, model, task = Batches(), CountingModel(), RowTask()
    passes: Any = Passes(task, model=model)  # type: ignore[arg-type]
    dims = Layout(1, 1, 1, 1, 1, 1, 1, world_size=1)
    return Validator(config, batches, task, dims, metrics, passes), model, batches, reports  # type: ignore[arg-type]


def mean(rows: int) -> float:
    return sum(row * (row + 1) for row in range(rows)) / sum(row + 1 for row in range(rows))


def test_every_scored_label_weighs_the_same() -> None:
    made, model, _, reports = validator()
    figures = made.validate([model], step=10)
    assert figures["loss"] == pytest.approx(mean(ROWS))
    assert figures["bpb"] == pytest.approx(mean(ROWS) / 3)
    assert reports == [(10, figures["loss"], {"bpb": figures["bpb"]})]
    assert model.modes == [False] * ROWS
    assert model.training


@pytest.mark.parametrize("steps, rows", [(1, 2), (3, 6), (100, ROWS), (-1, ROWS)])
def test_it_reads_the_global_batches_asked_for(steps: int, rows: int) -> None:
    made, model, _, _ = validator(steps)
    assert made.validate([model], step=10)["loss"] == pytest.approx(mean(rows))
    assert len(model.modes) == rows


def test_the_same_rows_are_used_every_time_and_read_once() -> None:
    made, model, batches, _ = validator(steps=2)
    first, second = (made.validate([model], step)["loss"] for step in (10, 20))
    assert first == second
    assert batches.passes == 1 and batches.closed


def test_it_is_due_at_its_steps_and_at_the_last() -> None:
    made, _, _, _ = validator()
    assert [step for step in range(1, 26) if made.should_validate(step)] == [10, 20, 25]


def test_rows_without_labels_do_not_divide_by_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model, _, _ = validator()
    monkeypatch.setattr(RowTask, "report", lambda *args: {})
    empty = [({"input_ids": torch.zeros(1, 8, dtype=torch.long)}, torch.full((1, 8), -100))]
    monkeypatch.setattr(Batches, "__iter__", lambda self: iter(empty))
    assert math.isfinite(made.validate([model], 10)["loss"])
