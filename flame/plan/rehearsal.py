"""One optimizer step of one rank, by the code that trains, without devices: fake tensors over a fake process group."""

import copy
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import (
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.distributed.pipelining import schedules
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedModel, masking_utils

import flame.models.head
from flame import compat
from flame.data.batch import Batch, is_tensor, to_device
from flame.errors import ConfigError
from flame.models.build import build_model
from flame.parallel.context import ContextParallel
from flame.parallel.layout import Layout, layout_of
from flame.parallel.passes import Passes, build_passes
from flame.parallel.split import Anatomy, Placeholder, layer_stack
from flame.plan.formula import estimate, in_flight
from flame.plan.meter import Meter, Traffic
from flame.spec import Job, make_train_spec


@dataclass
class RankPlan:
    """What one rank holds and sends; all sizes in bytes."""

    rank: int
    stages: list[int]
    parameter_count: int
    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    unsharded: int = 0
    """Gathered parameters at the moment at which most memory is used."""
    activations: int = 0
    """The most that waits for the backward pass at a time."""
    other: int = 0
    """All else, at the moment at which most memory is used."""
    peak: int = 0
    traffic: dict[Traffic, tuple[int, int]] = field(default_factory=dict)
    """Calls and bytes sent in one optimizer step."""
    estimated: str = ""
    """Why the step could not be run; then memory besides the shards is by formula, and ``traffic`` is not known."""


@contextmanager
def fake_world(rank: int, size: int) -> Iterator[None]:
    """A process group of ``size`` ranks of which only this one exists; collectives move nothing."""
    if dist.is_initialized():
        raise ConfigError("a job cannot be planned in a process that trains")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        compat.end_process_groups()


def rehearse(job: Job, rank: int, world_size: int, found: Anatomy | None) -> RankPlan:
    """Lays the job out and runs one step as ``rank``.

    Args:
        job: a checked job, resolved for ``world_size``.
        rank: whose step.
        world_size: number of ranks.
        found: what runs where in the model; needed for pipeline stages.

    Raises:
        ConfigError: the job cannot be laid out like that.
    """
    job = _for_planning(job)
    with fake_world(rank, world_size):
        layout = layout_of(job.config, world_size)
        # Meshes are of the device of this machine; on a fake group that makes no difference.
        layout.build_mesh()
        passes = build_passes(meta_model(job), layout, job.config, torch.device(compat.DEVICE_TYPE), job.task, found)
        meter = Meter(
            {mesh.get_group().group_name: name for name, mesh in layout.get_all_one_dimensional_meshes().items()}
        )
        with _numbers_where_flame_needs_them(), FakeTensorMode(allow_non_fake_inputs=True) as fake, meter.watching():
            return _run(job, layout, passes, meter, fake, rank)


def meta_model(job: Job) -> PreTrainedModel:
    """The whole model without storage, as torchtitan builds it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, job.config.training.dtype))
    try:
        with torch.device("meta"):
            return build_model(job.model_class, job.model_config)
    finally:
        torch.set_default_dtype(before)


def accumulation(job: Job, layout: Layout) -> int:
    """Forward passes of an optimizer step."""
    training = job.config.training
    return training.global_batch_size // (training.local_batch_size * layout.dp_replicate * layout.dp_shard)


def _for_planning(job: Job) -> Job:
    """The job with an attention that runs here and uses the memory of the one it asks for, and without compilation."""
    job = copy.copy(job)
    job.config, job.model_config = copy.deepcopy(job.config), copy.deepcopy(job.model_config)
    job.config.compile.enable = False
    if job.config.activation_checkpoint.mode == "memory_budget":
        job.config.activation_checkpoint.mode = "none"  # the compiler would choose
    if "flash" in (chosen := job.model_config._attn_implementation or "") or "flex" in chosen:
        job.model_config._attn_implementation = "sdpa"
    return job


def _run(job: Job, layout: Layout, passes: Passes, meter: Meter, fake: FakeTensorMode, rank: int) -> RankPlan:
    for part in passes.parts:
        part.to_empty(device=compat.DEVICE_TYPE)
        part.train()
    parameters = [parameter for part in passes.parts for parameter in part.parameters()]
    buffers = [buffer for part in passes.parts for buffer in part.buffers()]
    meter.label(parameters, "parameters")
    meter.label(buffers, "buffers")
    optimizers = make_train_spec(job).build_optimizers_fn(passes.parts, job.config.optimizer, layout)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    meter.label(gradients, "gradients")
    impossible = _reason(optimizers.step)
    states = [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    meter.label(states, "optimizer")
    plan = RankPlan(
        rank=rank,
        stages=[part.index for part in passes.pipeline.parts] if passes.pipeline is not None else [0],
        parameter_count=sum(_local(parameter).numel() for parameter in parameters),
        parameters=_bytes(parameters),
        gradients=_bytes(gradients),
        optimizer=_bytes(states),
        buffers=_bytes(buffers),
    )
    del gradients, states
    times = accumulation(job, layout)
    if times == 1:
        optimizers.zero_grad()
    meter.restart()
    plan.estimated = _reason(lambda: passes.train(*_batch(job, fake), divisor=1.0))
    if plan.estimated:
        return _estimated(plan, job, layout, passes)
    meter.label([parameter.grad for parameter in parameters if parameter.grad is not None], "gradients")
    if not impossible:
        optimizers.step()
    plan.unsharded, plan.other = meter.peak["unsharded"], meter.peak["other"]
    plan.activations, plan.peak = meter.most_activations, sum(meter.peak.values())
    plan.traffic = {kind: (meter.calls[kind] * times, sent * times) for kind, sent in sorted(meter.sent.items())}
    return plan


def _estimated(plan: RankPlan, job: Job, layout: Layout, passes: Passes) -> RankPlan:
    """The plan of a rank whose step cannot be run."""
    parallel, training = job.config.parallelism, job.config.training
    shards = layout.get_mesh("fsdp").size()
    layers, whole = [], 0
    for part in passes.parts:
        whole += sum(_local(parameter).numel() for parameter in part.parameters())
        for layer in layer_stack(part):
            if not isinstance(layer, Placeholder):
                layers.append(shards * sum(_local(parameter).numel() for parameter in layer.parameters()))
    waiting, is_last = 1, True
    if passes.pipeline is not None:
        rows = training.local_batch_size // parallel.pipeline_parallel_microbatch_size
        stage = layout.get_mesh("pp").get_local_rank()
        waiting = in_flight(parallel.pipeline_parallel_schedule, rows, layout.pp, stage)
        is_last = passes.pipeline.has_last
    found = estimate(job, layers, [whole * shards - sum(layers)], waiting, is_last)
    plan.unsharded, plan.activations, plan.other = found.unsharded, found.activations, found.other
    own = plan.parameters + plan.gradients + plan.optimizer + plan.buffers
    plan.peak = own + plan.unsharded + plan.activations + plan.other
    return plan


def _batch(job: Job, fake: FakeTensorMode) -> Batch:
    """A micro-batch as the loader would give it."""
    training = job.config.training
    with unset_fake_temporarily():
        generator = torch.Generator().manual_seed(0)
        inputs, labels = job.task.sample(job.model_config, training.local_batch_size, training.seq_len, generator)
        if training.varlen and job.config.parallelism.context_parallel_degree > 1:
            # Elsewhere transformers would look for the documents' borders, of which no memory depends.
            inputs["position_ids"] = torch.arange(training.seq_len).expand(training.local_batch_size, -1)
        inputs, labels = job.task.prepare({**inputs, **job.task.draw(generator)}, labels, generator)
    faked = {name: fake.from_tensor(value) if is_tensor(value) else value for name, value in inputs.items()}
    return to_device((faked, fake.from_tensor(labels)), torch.device(compat.DEVICE_TYPE))


def _reason(run: Callable[[], Any]) -> str:
    """Runs something; returns why that is impossible on fake tensors, or "" if it is not.

    Whatever goes wrong may be the fault of an operator's rule for shapes, and proves nothing about the job: layouts
    that do not fit have been refused by then.
    """
    try:
        run()
    except ConfigError:
        raise
    except Exception as error:  # of a family's code, of autograd, of any operator
        if os.environ.get("FLAME_DEBUG") == "1":
            traceback.print_exc()
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


@contextmanager
def _numbers_where_flame_needs_them() -> Iterator[None]:
    """Lets the few functions that compute positions as tensors do so for real, and pipelines start without a vote."""

    def really(function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with unset_fake_temporarily():
                return function(*args, **kwargs)

        return run

    def start(schedule: Any, stages: list[Any], *_: Any) -> None:
        from torch.distributed.pipelining._utils import InferenceMode  # torch 2.13

        for stage in stages:
            stage._inference_mode = InferenceMode.STATIC

    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        for owner, name in ((flame.models.head, "_vocabulary_of"), (ContextParallel, "_starts")):
            stack.enter_context(mock.patch.object(owner, name, really(getattr(owner, name))))
        if hasattr(schedules._PipelineSchedule, "_warmup_p2p"):
            stack.enter_context(mock.patch.object(schedules._PipelineSchedule, "_warmup_p2p", start))
        # Of fake positions transformers cannot say that they are those of one document, and would build a mask.
        stack.enter_context(mock.patch.object(masking_utils, "find_packed_sequence_indices", lambda *_: None))
        yield


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of this rank's parts."""
    return sum(_local(tensor).numel() * tensor.element_size() for tensor in tensors)
