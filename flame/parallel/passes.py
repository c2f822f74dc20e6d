"""Runs a batch through a model in whatever way it is laid out: whole, in stages, in parts of a sequence."""

import logging
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from flame.config import JobConfig
from flame.data.batch import Inputs
from flame.models.families.units import made_of_units
from flame.parallel.context import ContextParallel, SplitSequence
from flame.parallel.layout import Layout
from flame.parallel.parallelize import parallelize
from flame.parallel.pipeline import Pipeline, pipeline
from flame.parallel.split import Anatomy
from flame.parallel.stage import StageTask
from flame.parallel.unit_context import UnitContext

log = logging.getLogger(__name__)


class Passes:
    """Forward and backward passes of a job; what trainer, validator and preflight call.

    Args:
        task: computes the summed loss.
        model: the model, where it is not in stages.
        pipeline: the stages, where it is.
        context: how sequences are split, if they are.
    """

    def __init__(
        self,
        task: StageTask,
        model: PreTrainedModel | None = None,
        pipeline: Pipeline | None = None,
        context: SplitSequence | None = None,
    ) -> None:
        assert (model is None) != (pipeline is None)
        self.task, self.model, self.pipeline, self.context = task, model, pipeline, context

    def train(self, inputs: Inputs, labels: torch.Tensor, divisor: float) -> torch.Tensor:
        """Computes a batch's gradients.

        Args:
            inputs: of the whole batch that this rank shares with those it splits the batch with.
            labels: its labels, [B, T].
            divisor: what the summed loss is divided by: the number of scored labels of the step, over all ranks.

        Returns:
            This rank's share of the loss; over all ranks that hold parts of the batch they add up to the whole.
        """
        inputs, labels = self._own(inputs, labels)
        if self.pipeline is not None:
            return self.pipeline.train(inputs, labels, divisor)
        loss = self._loss_sum(inputs, labels) / divisor
        loss.backward()
        return loss.detach()

    def evaluate(self, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """This rank's share of a batch's summed loss, without gradients."""
        inputs, labels = self._own(inputs, labels)
        if self.pipeline is not None:
            return self.pipeline.evaluate(inputs, labels)
        return self._loss_sum(inputs, labels)

    @property
    def parts(self) -> list[PreTrainedModel]:
        """The modules of this rank: the model, or its stages."""
        return [part.model for part in self.pipeline.parts] if self.pipeline is not None else [self.model]  # type: ignore[list-item]

    def finish_gradients(self) -> None:
        """Completes the gradients after the last micro-batch of a step."""
        if self.pipeline is not None:
            self.pipeline.finish_gradients()

    @property
    def twins(self) -> list[Any]:
        """Parameters whose gradients another parameter has too; the gradient norm must not count them."""
        return self.pipeline.twins if self.pipeline is not None else []

    def _own(self, inputs: Inputs, labels: torch.Tensor) -> tuple[Inputs, torch.Tensor]:
        return self.context.shard(inputs, labels) if self.context is not None else (inputs, labels)

    def _loss_sum(self, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        assert self.model is not None
        if self.context is not None:
            self.context.enter(inputs.pop("documents", None))
        return self.task.loss_sum(self.model, inputs, labels)


def build_passes(
    model: PreTrainedModel,
    layout: Layout,
    config: JobConfig,
    device: torch.device,
    task: StageTask,
    found: Anatomy | None,
) -> Passes:
    """Lays a model on the meta device out over the devices of a job.

    Args:
        model: the whole model; parts of it or the model itself end up in the result.
        layout: the grid of devices.
        config: the job.
        device: this rank's.
        task: computes the loss.
        found: what runs where in the model; needed for pipeline stages.

    Raises:
        ConfigError: the model cannot be laid out like that.
    """
    context = split_sequence(model, layout.get_optional_mesh("cp"), config)
    if not layout.pp_enabled:
        if context is not None:
            context.attach(model)
        return Passes(task, model=parallelize(model, layout, config), context=context)
    assert found is not None
    stages = pipeline(model, layout, config, device, found, task, context, parallelize)
    return Passes(task, pipeline=stages, context=context)


def split_sequence(model: PreTrainedModel, mesh: DeviceMesh | None, config: JobConfig) -> SplitSequence | None:
    """The job's context parallelism, to be attached to each part of the model; None if every rank holds whole
    sequences."""
    if mesh is None:
        return None
    layout = config.parallelism
    if made_of_units(model):
        log.info(
            "context parallelism: every rank runs some heads of each mixer over the whole sequence; "
            "context_parallel_rotate_method and context_parallel_load_balancer have no meaning for this family"
        )
        return UnitContext(mesh)
    balanced = layout.context_parallel_load_balancer == "headtail"
    return ContextParallel(mesh, layout.context_parallel_rotate_method, balanced)
