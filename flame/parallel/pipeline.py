"""Pipeline parallelism: builds a rank's stages and runs batches through them by one of torch's schedules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    ScheduleDualPipeV,
    ScheduleZBVZeroBubble,
    _PipelineScheduleRuntime,
    get_schedule_class,
)
from torch.distributed.tensor import DTensor
from torchtitan.config import TORCH_DTYPE_MAP
from transformers import PreTrainedModel

from flame.config import JobConfig
from flame.errors import ConfigError
from flame.parallel.context import ContextParallel
from flame.parallel.layout import Layout
from flame.parallel.stages import Anatomy, Inlet, Outlet, cut, divide_layers, named_division

Inputs = dict[str, torch.Tensor]


class StageTask(Protocol):
    """What a stage needs of the job's task."""

    def model_inputs(self, inputs: Inputs) -> Inputs:
        """The keyword arguments of the forward pass."""
        ...

    def loss_sum(self, model: Any, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """Runs the model and returns the summed loss."""
        ...


def schedule_class(config: JobConfig) -> type:
    """torch's class of ``parallelism.pipeline_parallel_schedule``.

    Raises:
        ConfigError: no such schedule.
    """
    layout = config.parallelism
    if layout.pipeline_parallel_schedule_csv:
        return _PipelineScheduleRuntime
    try:
        return get_schedule_class(layout.pipeline_parallel_schedule)
    except ValueError as error:
        raise ConfigError(f"parallelism.pipeline_parallel_schedule: {error}") from error


def stage_layers(config: JobConfig, count: int, found: Anatomy) -> list[range]:
    """The decoder layers of every stage of the whole pipeline.

    Args:
        config: the job.
        count: number of the model's layers.
        found: what runs where in the model.

    Raises:
        ConfigError: they cannot be divided as the job asks.
    """
    layout = config.parallelism
    ranks, several = layout.pipeline_parallel_degree, issubclass(schedule_class(config), PipelineScheduleMulti)
    first, last = (
        layout.pipeline_parallel_first_stage_less_layers,
        layout.pipeline_parallel_last_stage_less_layers,
    )
    if layout.module_fqns_per_model_part:
        stages = len(layout.module_fqns_per_model_part)
    elif layout.pipeline_parallel_layers_per_stage:
        stages = -(-(count + first + last) // layout.pipeline_parallel_layers_per_stage)
    else:
        stages = ranks * (2 if several else 1)
    if stages % ranks or (stages == ranks) == several:
        wanted = "at least two stages" if several else "one stage"
        raise ConfigError(
            f"parallelism: {stages} pipeline stages on {ranks} ranks do not go with schedule "
            f"'{layout.pipeline_parallel_schedule}', which wants {wanted} per rank; change "
            "pipeline_parallel_layers_per_stage or module_fqns_per_model_part"
        )
    if layout.module_fqns_per_model_part:
        return named_division(layout.module_fqns_per_model_part, count, found)
    return divide_layers(count, stages, first, last)


def stages_of_rank(config: JobConfig, rank: int, stages: int) -> list[int]:
    """Numbers of the stages that a pipeline rank holds; V-shaped schedules come back to the first rank."""
    ranks = config.parallelism.pipeline_parallel_degree
    if issubclass(schedule_class(config), (ScheduleZBVZeroBubble, ScheduleDualPipeV)):
        return [rank, 2 * ranks - 1 - rank]
    return list(range(rank, stages, ranks))


class Stage:
    """What takes the place of a stage's ``forward``: hidden states in and out, a summed loss out of the last.

    Called with what the stage before handed on [B, T, H] (the first: token ids [B, T]) and, by name, the batch itself.
    """

    def __init__(
        self, model: PreTrainedModel, found: Anatomy, task: StageTask, context: ContextParallel | None, index: int
    ) -> None:
        stack = model.get_submodule(found.layers)
        self.model, self.task, self.context, self.index = model, task, context, index
        self._whole: Callable[..., Any] = model.forward
        self._inlet = next((layer for layer in stack.children() if isinstance(layer, Inlet)), None)
        self._outlet = next((layer for layer in stack.children() if isinstance(layer, Outlet)), None)

    def __call__(
        self, carried: torch.Tensor, labels: torch.Tensor, documents: torch.Tensor | None = None, **inputs: torch.Tensor
    ) -> torch.Tensor:
        if self.context is not None:
            self.context.enter(documents)
        if self._inlet is not None:
            self._inlet.value = carried
        if self._outlet is None:
            return self.task.loss_sum(_Forward(self), inputs, labels)
        self._run(self.model.base_model, self.task.model_inputs(inputs))
        handed_on, self._outlet.value = self._outlet.value, None
        assert handed_on is not None
        handed_on = handed_on.reshape(*labels.shape, -1)
        # Zero-bubble schedules detach what a stage hands on in place, which a view does not allow.
        return handed_on.clone() if handed_on._is_view() else handed_on

    def _run(self, forward: Callable[..., Any], inputs: Inputs) -> Any:
        """Runs a forward pass whose token ids give way to what was handed on."""
        if self._inlet is not None and self._inlet.value is not None:
            ids = inputs["input_ids"]
            hidden = self._inlet.value.reshape(*ids.shape, -1)
            inputs = {name: value for name, value in inputs.items() if name != "input_ids"}
            self._inlet.value, inputs["inputs_embeds"] = hidden, hidden
        try:
            return forward(**inputs)
        finally:
            if self._inlet is not None:
                self._inlet.value = None


class _Forward:
    """The model as a task sees it on the last stage: called with token ids, it goes on from the handed-on states."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.config = stage.model.config
        self.get_output_embeddings = stage.model.get_output_embeddings

    def __call__(self, **inputs: Any) -> Any:
        return self._stage._run(self._stage._whole, inputs)


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
    """

    def __init__(
        self, parts: list[Part], stages: int, layout: Layout, config: JobConfig, hidden: int, device: torch.device
    ) -> None:
        self.parts, self.stages, self.config, self.device = parts, stages, config, device
        self.group = layout.get_mesh("pp").get_group()
        self.has_first = any(part.index == 0 for part in parts)
        self.has_last = any(part.index == stages - 1 for part in parts)
        self._sizes = (config.training.seq_len // layout.cp, hidden)
        self._schedules: dict[int, Any] = {}
        self._divisor = 1.0
        self._tie = _Tie(parts, stages, self.group) if stages > 1 else None

    @property
    def twins(self) -> list[nn.Parameter]:
        """Second copies of parameters that another stage has too."""
        return self._tie.twins if self._tie is not None else []

    def train(self, inputs: Inputs, labels: torch.Tensor, divisor: float) -> torch.Tensor:
        """Forward and backward over a batch; returns its summed loss over ``divisor``, zero but on the last stage."""
        loss = self._step(inputs, labels, divisor, train=True)
        return loss

    def evaluate(self, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """The summed loss of a batch without gradients, zero but on the last stage."""
        return self._step(inputs, labels, 1.0, train=False)

    def finish_gradients(self) -> None:
        """Adds up the gradients of parameters that two stages share; call once, before the gradients are used."""
        if self._tie is not None:
            self._tie.sum_gradients()

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
            if layout.pipeline_parallel_schedule_csv:
                schedule._load_csv(layout.pipeline_parallel_schedule_csv)  # type: ignore[union-attr]
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


class _Tie:
    """An embedding that is also the head: the first and the last stage each have a copy, and must add up gradients."""

    def __init__(self, parts: list[Part], stages: int, group: dist.ProcessGroup) -> None:
        self.group = group
        self.first = next((_embedding(part.model) for part in parts if part.index == 0), None)
        self.last = next((_embedding(part.model) for part in parts if part.index == stages - 1), None)
        holders: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(holders, (self.first is not None, self.last is not None), group=group)
        self.tied = any(last for _, last in holders)
        self._first_rank = next((rank for rank, (first, _) in enumerate(holders) if first), -1)
        self._last_rank = next((rank for rank, (_, last) in enumerate(holders) if last), -1)

    @property
    def twins(self) -> list[nn.Parameter]:
        return [self.last] if self.last is not None else []

    def sum_gradients(self) -> None:
        if not self.tied:
            return
        if self.first is not None and self.last is not None:
            total = _local(self.first) + _local(self.last)
            _local(self.first).copy_(total)
            _local(self.last).copy_(total)
        elif self.first is not None:
            self._exchange(_local(self.first), self._last_rank)
        elif self.last is not None:
            self._exchange(_local(self.last), self._first_rank)

    def _exchange(self, gradient: torch.Tensor, peer: int) -> None:
        got = torch.empty_like(gradient)
        operations = [
            dist.P2POp(dist.isend, gradient.contiguous(), group=self.group, group_peer=peer),
            dist.P2POp(dist.irecv, got, group=self.group, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        gradient.add_(got)


def _embedding(model: PreTrainedModel) -> nn.Parameter | None:
    embedding = model.get_input_embeddings()
    return embedding.weight if isinstance(embedding, nn.Embedding) else None  # type: ignore[return-value]


def _local(parameter: nn.Parameter) -> torch.Tensor:
    """This rank's shard of a parameter's gradient."""
    gradient = parameter.grad
    assert gradient is not None
    return gradient._local_tensor if isinstance(gradient, DTensor) else gradient


def pipeline(
    model: PreTrainedModel,
    layout: Layout,
    config: JobConfig,
    device: torch.device,
    found: Anatomy,
    task: StageTask,
    context: ContextParallel | None,
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
        part.forward = Stage(part, found, task, context, index)  # type: ignore[method-assign]
        parts.append(Part(parallelize(part, layout, config), index))
    return Pipeline(parts, len(division), layout, config, model.config.get_text_config().hidden_size, device)
