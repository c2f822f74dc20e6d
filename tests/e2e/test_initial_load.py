"""Continued pretraining starts at the weights of a HuggingFace folder."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from flame.config import parse, resolve
from flame.data.job import train_loader
from flame.losses import cross_entropy_sum
from flame.spec import load_job
from flame.train import task_options
from tests.runs import write_job

START = {"training.steps": 4, "optimizer.lr": 1e-2}


@pytest.fixture(scope="module")
def first(materials, pool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    run = pool.run(write_job(materials, folder, {**START, "export.enable": True}), folder)
    assert run.code == 0, run.output
    return run


def loss_of_first_batch(job_file, folder) -> float:
    config = parse(["--job.config_file", str(job_file)], task_options)
    resolve(config, world_size=1)
    job = load_job(config)
    batches = iter(train_loader(config, job.task.encoder()))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        pairs = [next(batches) for _ in range(4)]
        losses = [cross_entropy_sum(model(input_ids=inputs["input_ids"]).logits, labels) for inputs, labels in pairs]
    return sum(loss.item() for loss in losses) / sum(int((labels != -100).sum()) for _, labels in pairs)


@pytest.mark.parametrize("world", [1, 2])
def test_training_starts_at_the_weights_of_the_folder(first, materials, pool, tmp_path, world):
    latest = first.folder / "hf" / "latest"
    changes = {
        "checkpoint.initial_load_path": str(latest),
        "checkpoint.initial_load_in_hf": True,
        "debug.seed": 7,
        "training.steps": 2,
    }
    job = write_job(materials, tmp_path / "run", changes)
    run = pool.run(job, tmp_path / "run", world=world)
    assert run.code == 0, run.output
    assert run.series("loss")[0] == pytest.approx(loss_of_first_batch(job, latest), rel=1e-5)
    assert run.series("loss")[0] < first.series("loss")[0] - 0.3, "these are not the trained weights"
    assert run.series("tokens")[0] == 256

    # A restart goes on from the run's own checkpoint instead.
    again = pool.run(job, tmp_path / "run", "--training.steps", "3", world=world)
    assert again.code == 0, again.output
    assert [record["step"] for record in again.records] == [1, 2, 3]


def test_training_starts_at_a_step_of_another_run(first, materials, pool, tmp_path):
    step = first.folder / "checkpoint" / "step-4"
    job = write_job(materials, tmp_path / "run", {"checkpoint.initial_load_path": str(step), "debug.seed": 7})
    run = pool.run(job, tmp_path / "run")
    assert run.code == 0, run.output
    assert run.series("loss")[0] == pytest.approx(loss_of_first_batch(job, first.folder / "hf" / "latest"), rel=1e-5)


def test_a_folder_of_another_shape_is_refused(first, materials, pool, tmp_path):
    from tests.runs import LLAMA

    changes = {
        "model.config": str(materials.model({**LLAMA, "intermediate_size": 128})),
        "checkpoint.initial_load_path": str(first.folder / "hf" / "latest"),
        "checkpoint.initial_load_in_hf": True,
    }
    run = pool.run(write_job(materials, tmp_path / "run", changes), tmp_path / "run")
    assert run.output.startswith("CheckpointError: ")
    assert "mlp" in run.output
