"""Series from a file to their classes, or to numbers: learnt, exported, classified from the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from flame import cli
from flame.inference import classify
from tests.runs import Materials, Pool, Run, environment, write_job

CLASSES = ("rising", "falling", "waving")
MODEL: dict[str, Any] = {
    "model_type": "hgrn_timeseries",
    "num_channels": 2,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "dropout": 0.0,
}

STRANGER = """
import sys
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification
folder, series = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
features = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
values = list(np.load(series)["X"])
with torch.no_grad():
    logits = model(**features(values, return_tensors="pt")).logits
assert not [name for name in sys.modules if name.split(".")[0] in ("flame", "torchtitan")]
print([model.config.id2label[number] for number in logits.argmax(1).tolist()])
"""


def series(rng: np.random.Generator, label: str) -> np.ndarray:
    """16 to 32 steps of two channels far from zero, float32 [T, 2]."""
    time = np.linspace(0, 1, rng.integers(16, 33))
    shape = {"rising": time, "falling": 1 - time, "waving": 0.5 + 0.5 * np.sin(20 * time)}[label]
    values = np.stack([40 + 8 * shape, -3 + 0.2 * shape[::-1]], 1) + rng.standard_normal((len(time), 2)) * [1, 0.03]
    return values.astype(np.float32)


def write_npz(path: Path, listed: list[np.ndarray], labels: Any = None) -> Path:
    arrays = {"values": np.concatenate(listed), "lengths": np.array([len(one) for one in listed])}
    np.savez(path, **arrays, **({} if labels is None else {"y": labels}))
    return path


class Data(NamedTuple):
    """What is learnt and what is held out."""

    train: Path
    held_out: Path


def write_classes(folder: Path) -> Data:
    files = []
    for name, count, seed in (("train", 150, 0), ("held_out", 30, 1)):
        rng = np.random.default_rng(seed)
        labels = [CLASSES[number % 3] for number in range(count)]
        files.append(write_npz(folder / f"{name}.npz", [series(rng, label) for label in labels], np.array(labels)))
    return Data(*files)


def write_numbers(folder: Path) -> Data:
    """Whole numbers: the height of a step in the first channel, times ten, and a thousand."""
    files = []
    for name, count, seed in (("train", 150, 0), ("held_out", 30, 1)):
        rng = np.random.default_rng(seed)
        heights = rng.integers(-9, 10, count)
        listed = []
        for height in heights:
            one = rng.standard_normal((int(rng.integers(10, 20)), 2)).astype(np.float32) * 0.1
            one[:, 0] += height
            listed.append(one)
        files.append(write_npz(folder / f"{name}.npz", listed, 1000 + 10 * heights))
    return Data(*files)


def train(materials: Materials, pool: Pool, folder: Path, data: Data, **changes: Any) -> Run:
    values = {
        "model.config": str(materials.model(MODEL)),
        "model.tokenizer_path": None,
        "task.name": "classification",
        "data.sources": [{"path": str(data.train)}],
        "training.seq_len": 64,
        "training.local_batch_size": 16,
        "training.global_batch_size": 16,
        "training.steps": 120,
        "optimizer.lr": 1e-2,
        "lr_scheduler.warmup_steps": 10,
        "lr_scheduler.decay_ratio": 0.5,
        "metrics.log_freq": 10,
        "validation.enable": True,
        "validation.freq": 60,
        "validation.sources": [{"path": str(data.held_out)}],
        "export.enable": True,
        **changes,
    }
    run = pool.run(write_job(materials, folder, values), folder, timeout=200)
    assert run.code == 0, run.output
    return run


@pytest.fixture(scope="module")
def classes(materials: Materials, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Data]:
    folder = tmp_path_factory.mktemp("classes")
    data = write_classes(folder)
    return train(materials, pool, folder / "run", data, **{"task.jitter": 0.1, "task.label_smoothing": 0.05}), data


@pytest.fixture(scope="module")
def numbers(materials: Materials, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Data]:
    folder = tmp_path_factory.mktemp("numbers")
    data = write_numbers(folder)
    return train(materials, pool, folder / "run", data, **{"task.regression": True}), data


Classify = Callable[..., tuple[int, str, str]]


@pytest.fixture
def classified(capsys: pytest.CaptureFixture[str]) -> Classify:
    """``flame classify`` with a run's newest model: exit code, output, errors."""

    def run_it(run: Run, *words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(classify.main, ["--model", str(run.folder / "hf" / "latest"), *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_it


def test_classes_are_learnt(classes: tuple[Run, Data]) -> None:
    run, _ = classes
    assert run.series("val_accuracy")[-1] > 0.9 and run.series("val_macro_f1")[-1] > 0.9
    assert run.series("val_loss")[-1] < run.series("val_loss")[0] or run.series("val_loss")[-1] < 0.3
    assert {file.name for file in (run.folder / "validation").iterdir()} == {"confusion-60.png", "confusion-120.png"}


def test_the_exported_model_knows_its_classes_and_statistics(classes: tuple[Run, Data]) -> None:
    run, data = classes
    folder = run.folder / "hf" / "latest"
    assert json.loads((folder / "config.json").read_text())["id2label"] == {
        "0": "falling",
        "1": "rising",
        "2": "waving",
    }
    values = np.load(data.train)["values"].astype(np.float64)
    features = json.loads((folder / "preprocessor_config.json").read_text())
    assert features["mean"] == pytest.approx(values.mean(0).tolist(), rel=1e-5)
    assert features["std"] == pytest.approx(values.std(0).tolist(), rel=1e-5)


def test_labelled_series_are_scored(classes: tuple[Run, Data], classified: Classify) -> None:
    run, data = classes
    code, out, _ = classified(run, data.held_out)
    *lines, last = out.splitlines()
    assert code == 0 and len(lines) == 30
    right = sum(line.split()[-4] == line.split()[-1].rstrip(")") for line in lines)
    assert last == f"{right} of 30 right: accuracy {right / 30:.4f}"
    assert right / 30 == pytest.approx(run.series("val_accuracy")[-1])


def test_series_never_seen_are_classified(classes: tuple[Run, Data], classified: Classify, tmp_path: Path) -> None:
    run, _ = classes
    rng = np.random.default_rng(7)
    wanted = ["falling", "waving", "rising", "falling"]
    file = write_npz(tmp_path / "unseen.npz", [series(rng, label) for label in wanted])
    code, out, _ = classified(run, file, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [record["class"] for record in records] == wanted
    for record in records:
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert set(record["probabilities"]) == set(CLASSES) and "label" not in record


@pytest.mark.parametrize("delimiter, suffix", [(",", ".csv"), (" ", ".txt")])
def test_a_file_of_steps_is_one_series(
    classes: tuple[Run, Data], classified: Classify, tmp_path: Path, delimiter: str, suffix: str
) -> None:
    run, _ = classes
    rng = np.random.default_rng(8)
    files = []
    for label in CLASSES:
        np.savetxt(tmp_path / f"{label}{suffix}", series(rng, label), delimiter=delimiter)
        files.append(tmp_path / f"{label}{suffix}")
    code, out, _ = classified(run, "--steps", *files)
    assert code == 0 and [line.split()[1] for line in out.splitlines()] == list(CLASSES)


def test_the_command_line_classifies(classes: tuple[Run, Data], tmp_path: Path) -> None:
    run, _ = classes
    np.savetxt(tmp_path / "new.csv", series(np.random.default_rng(9), "waving"), delimiter=",")
    command = [sys.executable, "-m", "flame.cli", "classify", "--model", str(run.folder / "hf" / "latest"), "--steps"]
    done = subprocess.run(
        [*command, "new.csv"], capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["new.csv", "waving"]


def test_what_cannot_be_classified_is_one_line(
    classes: tuple[Run, Data], classified: Classify, tmp_path: Path, materials: Materials
) -> None:
    run, _ = classes
    np.savetxt(tmp_path / "wide.csv", np.ones((9, 3)), delimiter=",")
    (tmp_path / "headed.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "empty.csv").write_text("")
    np.savetxt(tmp_path / "infinite.csv", np.full((9, 2), np.inf), delimiter=",")
    for name, said in (
        ("wide.csv", "must be"),
        ("headed.csv", "no table of numbers"),
        ("empty.csv", "empty.csv"),
        ("absent.csv", "absent.csv"),
        ("infinite.csv", "infinite.csv"),
    ):
        code, out, err = classified(run, "--steps", tmp_path / name)
        assert code == 2 and not out and said in err and len(err.splitlines()) == 1, (name, out, err)
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"no archive")
    code, _, err = classified(run, broken)
    assert code == 2 and "broken.npz" in err and len(err.splitlines()) == 1


def test_a_stranger_gives_the_same_classes(classes: tuple[Run, Data], classified: Classify, tmp_path: Path) -> None:
    run, _ = classes
    rng = np.random.default_rng(10)
    wanted = [*CLASSES, *CLASSES]
    np.savez(tmp_path / "unseen.npz", X=np.stack([series(rng, label)[:16] for label in wanted]))
    command = [sys.executable, "-c", STRANGER, str(run.folder / "hf" / "latest"), "unseen.npz"]
    without_flame = {**environment(), "PYTHONPATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, capture_output=True, text=True, env=without_flame, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    _, out, _ = classified(run, tmp_path / "unseen.npz", "--json")
    assert done.stdout.splitlines()[-1] == str([json.loads(line)["class"] for line in out.splitlines()])


def test_numbers_are_learnt(numbers: tuple[Run, Data]) -> None:
    run, _ = numbers
    assert run.series("loss")[0] == pytest.approx(1.0, abs=0.6), "it does not begin at the mean"
    assert run.series("val_r2")[-1] > 0.9
    assert run.series("val_rmse")[-1] >= run.series("val_mae")[-1] > 0
    assert not (run.folder / "validation").exists()


def test_numbers_are_told(numbers: tuple[Run, Data], classified: Classify, tmp_path: Path) -> None:
    run, data = numbers
    code, out, _ = classified(run, data.held_out)
    *lines, last = out.splitlines()
    assert code == 0 and len(lines) == 30
    assert last.startswith("mean absolute error ")
    assert float(last.split()[3]) == pytest.approx(run.series("val_mae")[-1], rel=1e-2)
    unseen = write_npz(
        tmp_path / "unseen.npz", [np.stack([np.full(12, height), np.zeros(12)], 1) for height in (-6, 6)]
    )
    first, second = (json.loads(line)["value"] for line in classified(run, unseen, "--json")[1].splitlines())
    assert first == pytest.approx(940, abs=30) and second == pytest.approx(1060, abs=30)


def test_the_exported_model_of_numbers_is_a_regression(numbers: tuple[Run, Data]) -> None:
    config = json.loads((numbers[0].folder / "hf" / "latest" / "config.json").read_text())
    assert config["problem_type"] == "regression" and len(config.get("id2label", {0: 0})) == 1
    assert config["label_mean"] == pytest.approx(np.load(numbers[1].train)["y"].mean())
