"""Validation during training: a held-out source, the same rows for every number of ranks, weighted by labels."""

import logging
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torchtitan.components.validate import BaseValidator
from torchtitan.distributed import ParallelDims

from flame import compat
from flame.config import JobConfig
from flame.data.batch import Batch, is_tensor, join_rows, rows_of, to_device
from flame.errors import DataError
from flame.losses import IGNORE_INDEX
from flame.metrics import Metrics
from flame.parallel.passes import Passes
from flame.parallel.reduce import sum_over_data, sum_tensors
from flame.tasks.base import Task, seeded

log = logging.getLogger(__name__)


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
        self.validated = -1
        """The step validated last, which is not validated again."""
        self._batches: list[Batch] | None = None

    def should_validate(self, step: int) -> bool:
        """Every ``validation.freq`` steps and after the last one."""
        due = step % self.job_config.validation.freq == 0 or step == self.job_config.training.steps
        return due and step != self.validated

    @torch.no_grad()
    def validate(self, model_parts: list[nn.Module], step: int) -> dict[str, float]:
        """Reports the mean loss over all scored labels and what the task makes of it, for each of the task's variants;
        returns these figures."""
        for part in model_parts:
            part.eval()
        figures: dict[str, float] = {}
        for name, extra in self.task.variants().items():
            found = self._figures(extra, step)
            figures |= {f"{key}_{name}".rstrip("_"): value for key, value in found.items()}
        for part in model_parts:
            part.train()
        self.validated = step
        others = {name: value for name, value in figures.items() if name != "loss"}
        self.metrics.log_validation(figures["loss"], step, others)
        for alarm in self.task.examine({f"val_{name}": value for name, value in figures.items()}):
            log.warning("step %d: %s", step, alarm)
        return figures

    def _figures(self, extra: Mapping[str, Any], step: int) -> dict[str, float]:
        """The loss and the task's report over all batches, with some inputs added."""
        totals: dict[str, torch.Tensor] = {}
        shares = {"loss": torch.zeros((), dtype=torch.float64, device=compat.DEVICE_TYPE)}
        for batch in self._equal_batches():
            inputs, labels = to_device(batch, compat.DEVICE_TYPE)
            loss = self.passes.evaluate({**inputs, **extra}, labels)
            _add(totals, {"valid": self.task.scored(inputs, labels), **self.task.counts(labels)})
            _add(shares, {"loss": loss, **self.task.tally()})
        summed: dict[str, Any] = sum_over_data(totals, self.parallel_dims)
        shown = sum_tensors(shares, self.parallel_dims)
        summed |= {name: value.item() if value.dim() == 0 else value for name, value in shown.items()}
        loss, valid = summed.pop("loss"), summed.pop("valid")
        mean = loss / max(valid, 1.0)
        if dist.get_rank() == 0:
            self.task.validated(step, shown, Path(self.job_config.job.dump_folder) / "validation")
        return {"loss": mean, **self.task.report(mean, valid, summed)}

    def _equal_batches(self) -> Iterator[Batch]:
        """The rank's batches, as many on every rank: gathering weights is collective. Ranks that run out of documents
        first go on with batches in which no label counts. Read once, then kept: validation sets are small."""
        if self._batches is None:
            self._batches = [self._prepared(batch) for batch in islice(self.loader, self._most_batches())]
            self.loader.close()
        most = int(
            sum_over_data({"count": torch.tensor(float(len(self._batches)))}, self.parallel_dims, "max")["count"]
        )
        if not most:
            raise DataError(f"validation.sources hold no usable documents: {self.loader.skipped or 'all are empty'}")
        for batch in self._batches:
            yield self._filled(batch)
        for _ in range(most - len(self._batches)):
            inputs, labels = self._filled(self._batches[0] if self._batches else self._blank())
            yield inputs, torch.full_like(labels, IGNORE_INDEX)

    def _prepared(self, batch: Batch) -> Batch:
        """The batch with what the task draws for it. Each row's seed is its text: the same noise in every validation,
        whichever rank reads the row."""
        values = next(value for value in batch[0].values() if is_tensor(value))
        texts = (zlib.crc32(row.numpy().tobytes()) for row in values)
        return self.task.prepare_rows(batch, (seeded(self.job_config.debug.seed or 0, text) for text in texts))

    def _most_batches(self) -> int | None:
        """This rank's share of ``validation.steps`` global batches; None for all of the source."""
        config = self.job_config
        ranks = self.parallel_dims.dp_replicate * self.parallel_dims.dp_shard
        rows = config.validation.steps * config.training.global_batch_size // ranks
        return -(-rows // config.validation.local_batch_size) if rows > 0 else None

    def _blank(self) -> Batch:
        return self._prepared(self.loader.blank())

    def _filled(self, batch: Batch) -> Batch:
        """The last batch of a source with copies of its first row, not scored, in place of rows it lacks: the schedule
        of a pipeline takes batches of one size."""
        missing = self.job_config.validation.local_batch_size - len(batch[1])
        if missing <= 0 or self.passes.pipeline is None:
            return batch
        inputs, labels = rows_of(batch, slice(0, 1))
        copies = {name: value.repeat(missing, 1) if is_tensor(value) else value for name, value in inputs.items()}
        return join_rows([batch, (copies, torch.full_like(labels, IGNORE_INDEX).repeat(missing, 1))])


def _add(totals: dict[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        totals[name] = totals.get(name, 0) + value.double()
