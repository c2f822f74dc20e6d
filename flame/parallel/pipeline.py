"""Pipeline parallelism: builds a rank's stages and runs batches through them by one of torch's schedules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti
from torchtitan.config import TORCH_DTYPE_MAP
from transformers import PreTrainedModel

from flame.config import JobConfig
from flame.data.batch import Inputs
from flame.errors import ConfigError
from flame.parallel.context import SplitSequence
from flame.parallel.division import schedule_class, stage_layers, stages_of_rank
from flame.parallel.layout import Layout
from flame.parallel.split import Anatomy, cut
from flame.parallel.stage import Stage, StageTask
from flame.parallel.tied import CommonParameters, TiedEmbedding


@dataclass
class Part:
    """One stage of this rank."""

    model: PreTrainedModel
    index: int


class Pipeline:
    """This rank's stages and the schedule that runs batches through them.

    Args:
        parts: the rank's stages, parallelized, in order.
        stages: number of stages of the whole pipeline.
        layout: the grid of devices.
        config: the job.
        hidden: width of the hidden states.
        device: where they are.
        common: parameters that every stage has.
    """

    def __init__(
        self,
        parts: list[Part],
        stages: int,
        layout: Layout,
        config: JobConfig,
        hidden: int,
        device: torch.device,
        common: tuple[str, ...] = (),
    ) -> None:
        self.parts, self.stages, self.config, self.device = parts, stages, config, device
        self.group = layout.get_mesh("pp").get_group()
        self.has_first = any(part.index == 0 for part in parts)
        self.has_last = any(part.index == stages - 1 for part in parts)
        self._sizes = (config.training.seq_len // layout.cp, hidden)
        self._schedules: dict[int, Any] = {}
        self._divisor = 1.0
        ends = {part.index: part.model for part in parts}
        self._tie = TiedEmbedding(ends.get(0), ends.get(stages - 1), self.group)
        self._common = CommonParameters(ends, common, self.group)

    @property
    def twins(self) -> list[nn.Parameter]:
        """Second copies of parameters that another stage has too."""
        return [*self._tie.twins, *self._common.twins]

    def train(self, inputs: Inputs, labels: torch.Tensor, divisor: float) -> torch.Tensor:
        """Forward and backward over a batch; returns its summed loss over ``divisor``, zero but on the last stage."""
        return self._step(inputs, labels, divisor, train=True)

    def evaluate(self, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """The summed loss of a batch without gradients, zero but on the last stage."""
        return self._step(inputs, labels, 1.0, train=False)

    def finish_gradients(self) -> None:
        """Adds up the gradients of parameters that two stages share; call once, before the gradients are used."""
        self._tie.sum_gradients()
        self._common.sum_gradients()

    def _step(self, inputs: Inputs, labels: torch.Tensor, divisor: float, train: bool) -> torch.Tensor:
        self._divisor = divisor
        schedule = self._schedule(len(labels))
        losses: list[torch.Tensor] = []
        step = schedule.step if train else schedule.eval
        ids = (inputs["input_ids"],) if self.has_first else ()
        target = labels if self.has_last else None
        options: dict[str, Any] = {"return_outputs": False, "labels": labels, **inputs}
        step(*ids, target=target, losses=losses if self.has_last else None, **options)
        return torch.stack(losses).sum() if self.has_last else torch.zeros((), device=self.device)

    def _loss(self, summed: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        # torchtitan/train.py:495 divides after the backward pass, which leaves gradients as large as sums.
        return summed / self._divisor

    def _schedule(self, rows: int) -> Any:
        """The schedule for a batch of ``rows``."""
        if rows not in self._schedules:
            layout = self.config.parallelism
            size = layout.pipeline_parallel_microbatch_size
            if rows % size:
                raise ConfigError(f"parallelism.pipeline_parallel_microbatch_size = {size} does not divide {rows} rows")
            kind, stages = schedule_class(self.config), [self._torch_stage(part, size) for part in self.parts]
            try:
                schedule = kind(
                    stages if issubclass(kind, PipelineScheduleMulti) else stages[0],  # pyright: ignore[reportArgumentType]
                    n_microbatches=rows // size,
                    loss_fn=self._loss,
                    scale_grads=False,
                )
            except ValueError as error:
                raise ConfigError(
                    f"parallelism.pipeline_parallel_schedule = '{layout.pipeline_parallel_schedule}' with {rows} rows "
                    f"in micro-batches of {size}: {error} Change training.local_batch_size"
                ) from error
            self._schedules[rows] = schedule
        return self._schedules[rows]

    def _torch_stage(self, part: Part, rows: int) -> PipelineStage:
        """The stage as torch's schedules know it, with the shapes it receives and sends."""
        length, width = self._sizes
        dtype = TORCH_DTYPE_MAP[self.config.training.mixed_precision_param]
        hidden = torch.empty(rows, length, width, dtype=dtype, device="meta", requires_grad=True)
        ids = torch.empty(rows, length, dtype=torch.long, device="meta")
        loss = torch.empty((), dtype=torch.float32, device="meta", requires_grad=True)
        return PipelineStage(
            part.model,
            part.index,
            self.stages,
            self.device,
            input_args=ids if part.index == 0 else hidden,
            output_args=loss if part.index == self.stages - 1 else hidden,
            group=self.group,
        )


def pipeline(
    model: PreTrainedModel,
    layout: Layout,
    config: JobConfig,
    device: torch.device,
    found: Anatomy,
    task: StageTask,
    context: SplitSequence | None,
    parallelize: Callable[[PreTrainedModel, Layout, JobConfig], PreTrainedModel],
) -> Pipeline:
    """Cuts a model on the meta device into this rank's stages and parallelizes each.

    Raises:
        ConfigError: the job's division or schedule does not fit the model.
    """
    stack = model.get_submodule(found.layers)
    assert isinstance(stack, nn.ModuleList)
    division = stage_layers(config, len(stack), found)
    parts = []
    for index in stages_of_rank(config, layout.get_mesh("pp").get_local_rank(), len(division)):
        part = cut(model, found, division[index], index == 0, index == len(division) - 1)
        if context is not None:
            context.attach(part)
        part.forward = Stage(part, task, context)  # type: ignore[method-assign]
        parts.append(Part(parallelize(part, layout, config), index))
    hidden = model.config.get_text_config().hidden_size
    return Pipeline(parts, len(division), layout, config, hidden, device, found.common)
