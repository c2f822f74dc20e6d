"""Every layout computes what one process computes, and one process computes what a loop written by hand computes.

All runs train the same five global batches of eight rows in float32 with labels spread unevenly over rows: two rows
have none, so that some micro-batches, and with four ranks a whole rank, have nothing to learn from.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flame.config import parse, resolve
from flame.data.job import train_loader
from flame.models.build import plain_model
from flame.spec import Job, load_job
from flame.train import task_options
from tests.parallel.parity import (
    MODELS,
    RECOMPUTE,
    REPLICATE,
    RESHARD,
    SHARD,
    STEPS,
    Train,
    assert_equal_runs,
    assert_equal_weights,
)
from tests.parallel.patches import MaskedLoader
from tests.runs import FAMILIES, Materials, Pool, Run, write_job


def job_of(job_file: Path) -> Job:
    config = parse(["--job.config_file", str(job_file)], task_options)
    resolve(config, world_size=1)
    return load_job(config)


def by_hand(job_file: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Trains with plain PyTorch; returns losses, gradient norms and weights."""
    job = job_of(job_file)
    config = job.config
    batches = iter(MaskedLoader(train_loader(config, job.task.encoder()), 0, 8, 2))
    model = plain_model(job.model_class, job.model_config, config.debug.seed)
    lr, eps = config.optimizer.lr, config.optimizer.eps
    assert lr is not None and eps is not None
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), eps=eps, weight_decay=0.1)
    losses, norms = [], []
    for _ in range(STEPS):
        micro_batches = [next(batches) for _ in range(4)]
        ids = torch.cat([inputs["input_ids"] for inputs, _ in micro_batches])
        labels = torch.cat([labels for _, labels in micro_batches])
        loss = F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), labels.flatten(), reduction="mean")
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.max_norm).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, dict(model.named_parameters())


@pytest.mark.parametrize("model", ["plain", "uneven"])
def test_one_process_computes_what_a_plain_loop_does(train: Train, model: str) -> None:
    run = train(model)
    losses, norms, weights = by_hand(run.folder.with_name("run.toml"))
    assert run.series("loss") == pytest.approx(losses, rel=1e-5)
    assert run.series("grad_norm") == pytest.approx(norms, rel=1e-4)
    assert min(norms) > 0.5, "nothing is clipped"
    assert_equal_weights(run.weights(STEPS), weights)


@pytest.mark.parametrize("local_batch_size", [1, 4, 8])
def test_accumulation_changes_nothing(train: Train, local_batch_size: int) -> None:
    assert_equal_runs(train(**{"training.local_batch_size": local_batch_size}), train())


@pytest.mark.parametrize("model", list(MODELS))
def test_fsdp_on_2_equals_one_process(train: Train, model: str) -> None:
    assert_equal_runs(train(model, world=2), train(model))


@pytest.mark.parametrize("model", ["uneven", "tied"])
@pytest.mark.slow
def test_fsdp_on_4_equals_one_process(train: Train, model: str) -> None:
    assert_equal_runs(train(model, world=4), train(model))


@pytest.mark.parametrize("model", ["plain", pytest.param("tied", marks=pytest.mark.slow)])
def test_replicas_alone_equal_one_process(train: Train, model: str) -> None:
    assert_equal_runs(train(model, world=2, **{REPLICATE: 2, SHARD: 1}), train(model))


@pytest.mark.parametrize("model", ["uneven", pytest.param("tied", marks=pytest.mark.slow)])
def test_replicas_of_shards_equal_one_process(train: Train, model: str) -> None:
    assert_equal_runs(train(model, world=4, **{REPLICATE: 2, SHARD: 2}), train(model))


@pytest.mark.parametrize("policy", ["always", "never"])
def test_when_weights_are_resharded_changes_nothing(train: Train, policy: str) -> None:
    assert_equal_runs(train(world=2, **{RESHARD: policy}), train(world=2), tolerance=1e-6)


@pytest.mark.parametrize(
    "mode, option, world",
    [
        ("full", "2", 2),
        ("selective", "2", 1),
        pytest.param("selective", "op", 2, marks=pytest.mark.slow),
        *(pytest.param("selective", option, world, marks=pytest.mark.slow) for option, world in (("1", 1), ("2", 2))),
        *(
            pytest.param(mode, option, 1, marks=pytest.mark.slow)
            for mode, option in (("full", "2"), ("selective", "op"))
        ),
        pytest.param("selective", "1", 2, marks=pytest.mark.slow),
    ],
)
def test_recomputing_activations_changes_nothing(train: Train, mode: str, option: str, world: int) -> None:
    changes = {RECOMPUTE: mode, "activation_checkpoint.selective_ac_option": option}
    assert_equal_runs(train(world=world, **changes), train(world=world), tolerance=1e-6)


@pytest.mark.parametrize("world", [1, 2])
def test_loss_in_the_head_equals_loss_of_the_logits(train: Train, world: int) -> None:
    on = train(world=world, **{"task.name": "causal_lm", "task.linear_cross_entropy": "on"})
    assert_equal_runs(on, train(world=world, **{"task.name": "causal_lm", "task.linear_cross_entropy": "off"}))


def test_packed_documents_equal_one_process(train: Train) -> None:
    varlen = {"training.varlen": True}
    assert_equal_runs(train("uneven", world=4, **varlen), train("uneven", **varlen))
    assert train("uneven", **varlen).series("loss") != train("uneven").series("loss")


def test_compiled_layers_equal_eager_ones(train: Train) -> None:
    changes = {"compile.enable": True, "compile.backend": "aot_eager"}
    assert_equal_runs(train(world=2, **changes), train(world=2))


def test_parity_would_notice_gradients_that_are_averaged_over_ranks(train: Train) -> None:
    wrong = train(world=2, patch="tests.parallel.patches:averaged_gradients")
    right = train(world=2)
    assert wrong.series("loss")[0] == right.series("loss")[0]
    assert wrong.series("grad_norm")[0] == pytest.approx(right.series("grad_norm")[0] / 2, rel=1e-4)


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a compiler on a CPU")
def test_inductor_equals_eager_layers(train: Train) -> None:
    assert_equal_runs(train(world=2, **{"compile.enable": True}), train(world=2))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_offloading_to_the_cpu_from_the_cpu_is_refused(materials: Materials, pool: Pool, tmp_path: Path) -> None:
    job = write_job(materials, tmp_path / "run", {"training.enable_cpu_offload": True})
    assert pool.run(job, tmp_path / "run").output.startswith("ConfigError: training.enable_cpu_offload = true needs")


EMA: dict[str, Any] = {"model_type": "ema_lm", "vocab_size": 320, "hidden_size": 30, "num_hidden_layers": 2}


def start_of(materials: Materials, pool: Pool, folder: Path, patch: str = "") -> tuple[Run, dict[str, torch.Tensor]]:
    """A run on two ranks whose learning rate is too small to change a weight, and its weights."""
    values = {
        "model.config": str(materials.model(EMA)),
        "model.plugin_path": str(FAMILIES),
        "optimizer.lr": 1e-30,
        "training.steps": 1,
    }
    run = pool.run(write_job(materials, folder, values), folder, world=2, patch=patch)
    assert run.code == 0, run.output
    return run, run.weights(1)


def test_sharded_ranks_start_at_the_weights_of_plain_construction(
    materials: Materials, pool: Pool, tmp_path: Path
) -> None:
    run, weights = start_of(materials, pool, tmp_path / "run")
    job = job_of(run.folder.with_name("run.toml"))
    for name, weight in plain_model(job.model_class, job.model_config, job.config.debug.seed).named_parameters():
        torch.testing.assert_close(weights[name], weight.data, rtol=0, atol=1e-20, msg=name)


def test_that_would_notice_initialisation_over_empty_storage(materials: Materials, pool: Pool, tmp_path: Path) -> None:
    """Upstream's way loses what a family sets in ``__init__``."""
    _, weights = start_of(materials, pool, tmp_path / "run", patch="tests.parallel.patches:initialised_in_place")
    start = torch.log(torch.linspace(1.0, 8.0, EMA["hidden_size"]))
    assert not torch.allclose(weights["model.layers.0.A_log"], start)


def validated(materials: Materials, pool: Pool, folder: Path, source: Path, world: int, steps: int) -> list[float]:
    values = {
        "training.local_batch_size": 2 if world < 4 else 1,
        "validation.enable": True,
        "validation.freq": 1,
        "validation.steps": steps,
        "validation.sources": [{"path": str(source)}],
        "training.steps": 2,
    }
    run = pool.run(write_job(materials, folder, values), folder, world=world)
    assert run.code == 0, run.output
    assert len(run.series("val_loss")) == 2
    return [*run.series("val_loss"), *run.series("val_bpb")]


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_validation_on_some_ranks_equals_one_process(
    materials: Materials, pool: Pool, tmp_path: Path, world: int
) -> None:
    """The documents of a rank do not fill the same number of rows as another's."""
    few, everything = (
        [
            validated(materials, pool, tmp_path / f"{ranks}{steps}", materials.held_out, ranks, steps)
            for ranks in (1, world)
        ]
        for steps in (1, -1)
    )
    assert few[1] == pytest.approx(few[0], rel=1e-5)
    assert everything[1] == pytest.approx(everything[0], rel=1e-5)
    assert few[0] != pytest.approx(everything[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [-1, 1])
def test_ranks_without_a_document_validate_with_the_others(
    materials: Materials, pool: Pool, tmp_path: Path, steps: int
) -> None:
    alone, together = (
        validated(materials, pool, tmp_path / str(world), materials.one_document, world, steps) for world in (1, 4)
    )
    assert together == pytest.approx(alone, rel=1e-5)
