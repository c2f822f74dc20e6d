"""What ``flame plan`` says of a rank is what the rank then holds and sends, to the byte."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from flame.parallel.passes import Passes
from flame.plan.meter import Meter
from flame.plan.rehearsal import RankPlan, rehearse
from flame.spec import anatomy_of
from flame.train import prepare
from flame.trainer import Trainer
from tests.runs import LLAMA, ROOT, UNEVEN_LLAMA, Materials, Pool, environment, write_job

SHARD, REPLICATE = "parallelism.data_parallel_shard_degree", "parallelism.data_parallel_replicate_degree"
TENSOR, PIPELINE = "parallelism.tensor_parallel_degree", "parallelism.pipeline_parallel_degree"
CONTEXT, ROTATE = "parallelism.context_parallel_degree", "parallelism.context_parallel_rotate_method"
TIED = {**LLAMA, "tie_word_embeddings": True}
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "one": (1, LLAMA, {}),
    "one in bfloat16": (1, LLAMA, {"training.mixed_precision_param": "bfloat16"}),
    "fsdp 2": (2, LLAMA, {}),
    "fsdp 4, uneven": (4, UNEVEN_LLAMA, {}),
    "fsdp 2, recomputed": (2, LLAMA, {"activation_checkpoint.mode": "full"}),
    "fsdp 2, logits": (2, LLAMA, {"task.linear_cross_entropy": "off"}),
    "fsdp 2, kept": (2, LLAMA, {"parallelism.fsdp_reshard_after_forward": "never"}),
    "replicate 2": (2, UNEVEN_LLAMA, {REPLICATE: 2, SHARD: 1}),
    "hsdp 2 x 2": (4, UNEVEN_LLAMA, {REPLICATE: 2, SHARD: 2}),
    "tensor 2": (2, LLAMA, {TENSOR: 2}),
    "tensor 2 x fsdp 2": (4, TIED, {TENSOR: 2}),
    "context 2": (2, LLAMA, {CONTEXT: 2}),
    "context 2, heads": (2, LLAMA, {CONTEXT: 2, ROTATE: "alltoall"}),
    "pipeline 2": (2, LLAMA, {PIPELINE: 2, "training.local_batch_size": 4}),
    "pipeline 2 x fsdp 2": (4, TIED, {PIPELINE: 2, "training.local_batch_size": 4}),
}


@contextmanager
def measured() -> Iterator[None]:
    """Lets a rank write what it holds and sends into its run folder: during its last micro-batch, and after it."""
    train, close, start = Passes.train, Trainer.close, Trainer.__init__
    meter = Meter({})

    def init(trainer: Trainer, job: Any) -> None:
        start(trainer, job)
        meter.meshes = {
            mesh.get_group().group_name: name
            for name, mesh in trainer.parallel_dims.get_all_one_dimensional_meshes().items()
        }
        for part in trainer.model_parts:
            meter.label(part.parameters(), "parameters")
            meter.label(part.buffers(), "buffers")

    def watched(passes: Passes, *args: Any) -> torch.Tensor:
        meter.restart()
        with meter.watching():
            return train(passes, *args)

    def write(trainer: Trainer) -> None:
        parameters = [parameter for part in trainer.model_parts for parameter in part.parameters()]
        states = [
            value for optimizer in trainer.optimizers for state in optimizer.state.values() for value in state.values()
        ]
        figures = {
            "parameters": held(parameters),
            "optimizer": held(states),
            "activations": meter.most_activations,
            "traffic": named(dict(meter.calls), dict(meter.sent)),
        }
        file = Path(trainer.job_config.job.dump_folder) / f"held-{dist.get_rank()}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures))
        close(trainer)

    with (
        mock.patch.object(Trainer, "__init__", init),
        mock.patch.object(Passes, "train", watched),
        mock.patch.object(Trainer, "close", write),
    ):
        yield


def held(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of this rank's parts."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def named(calls: dict[Any, int], sent: dict[Any, int]) -> dict[str, list[int]]:
    """Traffic by a name that JSON knows."""
    return {f"{kind.mesh} {kind.operation} {kind.phase}": [calls[kind], sent[kind]] for kind in sent}


def print_plans(jobs: dict[str, tuple[str, int]]) -> None:
    """Prints the plans of every rank of jobs; run in a process of its own, which cannot train any more."""
    plans = {}
    for name, (path, world) in jobs.items():
        job = prepare(["--job.config_file", path], world)
        found = anatomy_of(job)
        plans[name] = [_figures(rehearse(job, rank, world, found)) for rank in range(world)]
    print(json.dumps(plans))


def _figures(plan: RankPlan) -> dict[str, Any]:
    calls = {kind: value[0] for kind, value in plan.traffic.items()}
    sent = {kind: value[1] for kind, value in plan.traffic.items()}
    figures = {name: getattr(plan, name) for name in ("parameters", "optimizer", "activations", "estimated")}
    return {**figures, "traffic": named(calls, sent)}


@pytest.fixture(scope="module")
def jobs(materials: Materials, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The job files of all layouts; a run's folder has the file's name without ".toml"."""
    folder = tmp_path_factory.mktemp("plans")
    made = {}
    for number, (name, (_, model, changes)) in enumerate(LAYOUTS.items()):
        changes = {"training.global_batch_size": -1, "model.config": str(materials.model(model)), **changes}
        changes |= {"training.steps": 2, "parallelism.preflight": "off", "checkpoint.enable": False}
        made[name] = write_job(materials, folder / str(number), changes)
    return made


@pytest.fixture(scope="module")
def plans(jobs: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """The plan of every rank of every layout."""
    wanted = {name: (str(path), LAYOUTS[name][0]) for name, path in jobs.items()}
    program = f"from tests.parallel.test_plan_measured import print_plans; print_plans({wanted})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


QUICK = ("one in bfloat16", "fsdp 4, uneven", "fsdp 2, logits", "tensor 2", "context 2", "pipeline 2")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in LAYOUTS]
)
def test_a_rank_holds_and_sends_what_was_planned(
    name: str, jobs: dict[str, Path], plans: dict[str, list[dict[str, Any]]], pool: Pool
) -> None:
    folder = jobs[name].with_suffix("")
    run = pool.run(
        jobs[name], folder, world=LAYOUTS[name][0], patch="tests.parallel.test_plan_measured:measured", timeout=300
    )
    assert run.code == 0, run.output
    for rank, plan in enumerate(plans[name]):
        found = json.loads((folder / f"held-{rank}.json").read_text())
        assert plan == {**found, "estimated": ""}, (name, rank)
