"""Validation during training: a held-out source, the same rows for every number of ranks, weighted by labels."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn as nn
from torchtitan.components.validate import BaseValidator
from torchtitan.distributed import ParallelDims

from flame import compat
from flame.config import JobConfig
from flame.losses import IGNORE_INDEX
from flame.metrics import Metrics
from flame.parallel.passes import Passes
from flame.parallel.reduce import sum_over_data
from flame.tasks.base import Task

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]


class Validator(BaseValidator):
    """Runs ``validation.steps`` global batches (all of the source if -1) through the model without gradients."""

    def __init__(
        self,
        job_config: JobConfig,
        loader: Any,
        task: Task,
        parallel_dims: ParallelDims,
        metrics: Metrics,
        passes: Passes,
    ) -> None:
        super().__init__(job_config)
        self.loader = loader
        self.task = task
        self.parallel_dims = parallel_dims
        self.metrics = metrics
        self.passes = passes
        self._batches: list[Batch] | None = None

    def should_validate(self, step: int) -> bool:
        """Every ``validation.freq`` steps and after the last one."""
        return step % self.job_config.validation.freq == 0 or step == self.job_config.training.steps

    @torch.no_grad()
    def validate(self, model_parts: list[nn.Module], step: int) -> dict[str, float]:
        """Reports the mean loss over all scored labels and what the task makes of it; returns these figures."""
        for part in model_parts:
            part.eval()
        totals: dict[str, torch.Tensor] = {}
        total_loss = torch.zeros((), dtype=torch.float64, device=compat.DEVICE_TYPE)
        for inputs, labels in self._equal_batches():
            inputs = {name: tensor.to(compat.DEVICE_TYPE) for name, tensor in inputs.items()}
            labels = labels.to(compat.DEVICE_TYPE)
            total_loss += self.passes.evaluate(inputs, labels).double()
            for name, value in {"valid": (labels != IGNORE_INDEX).sum(), **self.task.counts(labels)}.items():
                totals[name] = totals.get(name, 0) + value.double()
        for part in model_parts:
            part.train()
        summed = sum_over_data(totals, self.parallel_dims)
        summed |= sum_over_data({"loss": total_loss}, self.parallel_dims, shares=True)
        loss, valid = summed.pop("loss"), summed.pop("valid")
        figures = {"loss": loss / max(valid, 1.0)}
        figures.update(self.task.report(figures["loss"], valid, summed))
        self.metrics.log_validation(figures.pop("loss"), step, figures)
        return {"loss": loss / max(valid, 1.0), **figures}

    def _equal_batches(self) -> Iterator[Batch]:
        """The rank's batches, as many on every rank: gathering weights is collective. Ranks that run out of documents
        first go on with batches in which no label counts. Read once, then kept: validation sets are small."""
        if self._batches is None:
            self._batches = list(islice(self.loader, self._most_batches()))
            self.loader.close()
        most = int(
            sum_over_data({"count": torch.tensor(float(len(self._batches)))}, self.parallel_dims, "max")["count"]
        )
        for inputs, labels in self._batches:
            yield _filled(inputs, labels, self.job_config.validation.local_batch_size)
        for _ in range(most - len(self._batches)):
            inputs, labels = self._batches[0] if self._batches else self._blank()
            inputs, labels = _filled(inputs, labels, self.job_config.validation.local_batch_size)
            yield inputs, torch.full_like(labels, IGNORE_INDEX)

    def _most_batches(self) -> int | None:
        """This rank's share of ``validation.steps`` global batches; None for all of the source."""
        config = self.job_config
        ranks = self.parallel_dims.dp_replicate * self.parallel_dims.dp_shard
        rows = config.validation.steps * config.training.global_batch_size // ranks
        return -(-rows // config.validation.local_batch_size) if rows > 0 else None

    def _blank(self) -> Batch:
        rows = self.job_config.validation.local_batch_size  # as many as a pipeline's schedule is made for
        ids = torch.zeros(rows, self.job_config.training.seq_len, dtype=torch.long)
        return {"input_ids": ids}, ids


def _filled(inputs: dict[str, torch.Tensor], labels: torch.Tensor, rows: int) -> Batch:
    """The last batch of a source with copies of its first row, not scored, in place of rows it lacks: the schedule of a
    pipeline takes batches of one size."""
    missing = rows - len(labels)
    if missing <= 0:
        return inputs, labels
    inputs = {name: torch.cat([value, value[:1].repeat(missing, 1)]) for name, value in inputs.items()}
    return inputs, torch.cat([labels, torch.full_like(labels[:1], IGNORE_INDEX).repeat(missing, 1)])
