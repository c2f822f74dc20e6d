"""Validation during training: a held-out source, the same rows for every number of ranks, weighted by labels."""

import logging
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
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
from flame.parallel.reduce import sum_over_data
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
            figures |= {f"{key}_{name}".rstrip("_"): value for key, value in self._figures(extra).items()}
        for part in model_parts:
            part.train()
        self.validated = step
        others = {name: value for name, value in figures.items() if name != "loss"}
        self.metrics.log_validation(figures["loss"], step, others)
        for alarm in self.task.examine({f"val_{name}": value for name, value in figures.items()}):
            log.warning("step %d: %s", step, alarm)
        return figures

    def _figures(self, extra: Mapping[str, Any]) -> dict[str, float]:
        """The loss and the task's report over all batches, with some inputs added."""
        totals: dict[str, torch.Tensor] = {}
        total_loss = torch.zeros((), dtype=torch.float64, device=compat.DEVICE_TYPE)
        for batch in self._equal_batches():
            inputs, labels = to_device(batch, compat.DEVICE_TYPE)
            total_loss += self.passes.evaluate({**inputs, **extra}, labels).double()
            for name, value in {"valid": (labels != IGNORE_INDEX).sum(), **self.task.counts(labels)}.items():
                totals[name] = totals.get(name, 0) + value.double()
        summed = sum_over_data(totals, self.parallel_dims)
        summed |= sum_over_data({"loss": total_loss}, self.parallel_dims, shares=True)
        loss, valid = summed.pop("loss"), summed.pop("valid")
        mean = loss / max(valid, 1.0)
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
        rows = self.job_config.validation.local_batch_size
        for batch in self._batches:
            yield _filled(batch, rows)
        for _ in range(most - len(self._batches)):
            inputs, labels = _filled(self._batches[0] if self._batches else self._blank(), rows)
            yield inputs, torch.full_like(labels, IGNORE_INDEX)

    def _prepared(self, batch: Batch) -> Batch:
        """The batch with what the task draws for it. Each row's seed is its text: the same noise in every validation,
        whichever rank reads the row."""
        texts = (zlib.crc32(row.numpy().tobytes()) for row in batch[0]["input_ids"])
        return self.task.prepare_rows(batch, (seeded(self.job_config.debug.seed or 0, text) for text in texts))

    def _most_batches(self) -> int | None:
        """This rank's share of ``validation.steps`` global batches; None for all of the source."""
        config = self.job_config
        ranks = self.parallel_dims.dp_replicate * self.parallel_dims.dp_shard
        rows = config.validation.steps * config.training.global_batch_size // ranks
        return -(-rows // config.validation.local_batch_size) if rows > 0 else None

    def _blank(self) -> Batch:
        rows = self.job_config.validation.local_batch_size  # as many as a pipeline's schedule is made for
        ids = torch.zeros(rows, self.job_config.training.seq_len, dtype=torch.long)
        return self._prepared(({"input_ids": ids}, ids))


def _filled(batch: Batch, rows: int) -> Batch:
    """The last batch of a source with copies of its first row, not scored, in place of rows it lacks: the schedule of a
    pipeline takes batches of one size."""
    missing = rows - len(batch[1])
    if missing <= 0:
        return batch
    inputs, labels = rows_of(batch, slice(0, 1))
    copies = {name: value.repeat(missing, 1) if is_tensor(value) else value for name, value in inputs.items()}
    return join_rows([batch, (copies, torch.full_like(labels, IGNORE_INDEX).repeat(missing, 1))])
