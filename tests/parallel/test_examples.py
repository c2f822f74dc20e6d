"""Recordings and series, altered at random and of very different lengths: every layout computes what one process does,
and a run that was interrupted goes on as if it had not been."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from flame.data.job import train_loader
from flame.models.build import plain_model
from flame.tokenizer.characters import character_tokenizer
from tests.parallel.parity import REPLICATE, SHARD, assert_equal_weights
from tests.parallel.test_parity import job_of
from tests.runs import Materials, Pool, Run, write_job

STEPS = 5
RATE = 8000
ASR: dict[str, Any] = {
    "model_type": "hgrn_asr",
    "vocab_size": 6,
    "sampling_rate": RATE,
    "num_mel_bins": 11,
    "subsampling": 2,
    "hidden_size": 15,
    "num_hidden_layers": 2,
    "dropout": 0.0,
    "normalise": "global",
}
SERIES: dict[str, Any] = {
    "model_type": "hgrn_timeseries",
    "num_channels": 2,
    "hidden_size": 15,
    "num_hidden_layers": 2,
    "patch_size": 2,
    "pooling": "attention",
    "dropout": 0.0,
}

Examples = dict[str, dict[str, Any]]
TrainExamples = Callable[..., Run]


def write_recordings(folder: Path) -> Path:
    """40 recordings of noise of 0.15 to 1.2 s; of some the transcript is unusable, or too long for them."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(40):
        samples = 0.1 * rng.standard_normal(round(RATE * rng.uniform(0.15, 1.2)))
        soundfile.write(folder / f"{number}.wav", samples.clip(-0.9, 0.9), RATE)
        text = "x" if number % 7 == 0 else "abba" * 30 if number == 11 else "".join(rng.choice(list("abc"), 4))
        lines.append(json.dumps({"audio": f"{number}.wav", "text": text}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "train.jsonl"


def write_series(folder: Path, numbers: bool) -> Path:
    """40 series of 3 to 40 steps, in some of which values are missing."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(3, 41, 40)
    values = 5 + 3 * rng.standard_normal((int(lengths.sum()), 2)).astype(np.float32)
    values[::17] = np.nan
    labels = 50 + 9 * rng.standard_normal(40) if numbers else rng.choice(["up", "down", "flat"], 40)
    path = folder / ("numbers.npz" if numbers else "classes.npz")
    np.savez(path, values=values, lengths=lengths, y=labels)
    return path


@pytest.fixture(scope="module")
def examples(materials: Materials, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """What a job of each kind says besides what all say."""
    folder = tmp_path_factory.mktemp("examples")
    character_tokenizer("abc ").save_pretrained(folder / "tokenizer")
    recordings = [{"path": str(write_recordings(folder))}]
    speech = {
        "model.config": str(materials.model(ASR)),
        "model.tokenizer_path": str(folder / "tokenizer"),
        "task.name": "ctc",
        "task.language": "",
        "task.steps_per_batch": 320,
        "task.speeds": [0.9, 1.0, 1.1],
        "task.noise_share": 0.5,
        "task.time_masks": 1,
        "task.time_mask_frames": 9,
        "data.sources": recordings,
        "validation.sources": recordings,
        "training.seq_len": 100,
    }
    series = {
        "model.config": str(materials.model(SERIES)),
        "model.tokenizer_path": None,
        "task.name": "classification",
        "task.steps_per_batch": 200,
        "task.jitter": 0.1,
        "task.shift": 2,
        "training.seq_len": 40,
    }
    classes, numbers = ([{"path": str(write_series(folder, of_numbers))}] for of_numbers in (False, True))
    return {
        "speech": speech,
        "classes": {**series, "data.sources": classes, "validation.sources": classes},
        "numbers": {**series, "task.regression": True, "data.sources": numbers, "validation.sources": numbers},
    }


@pytest.fixture(scope="module")
def train_examples(
    examples: Examples, materials: Materials, pool: Pool, tmp_path_factory: pytest.TempPathFactory
) -> TrainExamples:
    """Trains a kind of job with changes, in a new folder or in one that is there; equal new runs are made once."""
    made: dict[str, Run] = {}

    def run(kind: str, world: int = 1, folder: Path | None = None, **changes: Any) -> Run:
        name = repr((kind, world, changes))
        if folder is None and name in made:
            return made[name]
        place = folder or tmp_path_factory.mktemp("examples") / "run"
        values = {
            **examples[kind],
            "training.max_norm": 0.5,
            "optimizer.eps": 1e-5,
            "training.steps": STEPS,
            "validation.enable": True,
            "validation.freq": STEPS,
            "checkpoint.interval": 100,
            **changes,
        }
        found = pool.run(write_job(materials, place, values), place, world=world, timeout=200)
        assert found.code == 0, found.output
        if folder is None:
            made[name] = found
        return found

    return run


def figures(run: Run, without: tuple[str, ...] = ()) -> list[dict[str, float]]:
    """All that was logged but for speed and memory."""
    names = {"step", "loss", "grad_norm", "lr", "tokens", "loss_per_label"}
    return [
        {name: value for name, value in record.items() if (name in names or "val_" in name) and name not in without}
        for record in run.records
    ]


def assert_equal_runs(run: Run, reference: Run, steps: int = STEPS, tolerance: float = 1e-4) -> None:
    found, expected = figures(run, ("grad_norm",)), figures(reference, ("grad_norm",))
    assert len(run.series("loss")) == steps and len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=tolerance / 10, abs=1e-6)
    assert run.series("grad_norm") == pytest.approx(reference.series("grad_norm"), rel=tolerance)
    assert_equal_weights(run.weights(steps), reference.weights(steps), tolerance)


KINDS = ("speech", "classes", "numbers")


@pytest.mark.parametrize("kind", KINDS)
def test_two_shards_equal_one_process(train_examples: TrainExamples, kind: str) -> None:
    alone = train_examples(kind)
    assert_equal_runs(train_examples(kind, world=2), alone)
    assert len(set(np.diff(alone.series("tokens")))) > 1, "all batches are of the same size"
    assert [name for record in alone.records for name in record if name.startswith("val_")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("speech", "numbers"))
def test_two_replicas_equal_one_process(train_examples: TrainExamples, kind: str) -> None:
    assert_equal_runs(train_examples(kind, world=2, **{REPLICATE: 2, SHARD: 1}), train_examples(kind))


@pytest.mark.parametrize("kind", ("speech", pytest.param("numbers", marks=pytest.mark.slow)))
def test_accumulation_changes_nothing(train_examples: TrainExamples, kind: str) -> None:
    assert_equal_runs(train_examples(kind, **{"training.local_batch_size": 8}), train_examples(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_computes_what_a_plain_loop_does(train_examples: TrainExamples, kind: str) -> None:
    run = train_examples(kind, **{"training.local_batch_size": 8})
    job = job_of(run.folder.with_name("run.toml"))
    config = job.config
    model = plain_model(job.model_class, job.model_config, config.debug.seed)
    lr, eps = config.optimizer.lr, config.optimizer.eps
    assert lr is not None and eps is not None
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), eps=eps, weight_decay=0.1)
    batches = iter(train_loader(config, job.task.encoder()))
    losses, norms = [], []
    for _ in range(STEPS):
        inputs, labels = next(batches)
        has_label = (labels != -100).any(1)
        count = inputs["attention_mask"][has_label].sum() if kind == "speech" else has_label.sum()
        loss = job.task.loss(model(**inputs), labels, inputs) / count
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        losses.append(loss.item())
    assert run.series("loss") == pytest.approx(losses, rel=1e-5)
    assert run.series("grad_norm") == pytest.approx(norms, rel=1e-4)
    assert_equal_weights(run.weights(STEPS), dict(model.named_parameters()))


@pytest.mark.parametrize("kind", ("speech", pytest.param("classes", marks=pytest.mark.slow)))
def test_a_resumed_run_is_the_run_left_alone(
    train_examples: TrainExamples, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stop, steps = 4, 8
    alone = train_examples(
        kind, **{"training.steps": steps, "validation.freq": 2, "training.dataloader.num_workers": 1}
    )
    folder = tmp_path_factory.mktemp("resumed")
    options = {"validation.freq": 2}
    train_examples(kind, folder=folder / "same", **options, **{"training.steps": stop})
    shutil.copytree(folder / "same", folder / "other")
    resumed = train_examples(kind, folder=folder / "same", **options, **{"training.steps": steps})
    assert [list(map(repr, one.values())) for one in figures(resumed)] == [
        list(map(repr, one.values())) for one in figures(alone)
    ]
    for left, right in ((resumed.weights(steps), alone.weights(steps)), (resumed.moments(steps), alone.moments(steps))):
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    on_two = train_examples(kind, world=2, folder=folder / "other", **options, **{"training.steps": steps})
    assert_equal_runs(on_two, alone, steps)
