"""Classes of series and numbers: options, what counts, the loss, what is learnt of the training set, figures."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from custom_models.hgrn_timeseries import HgrnTimeseriesConfig, features
from flame.config import JobConfig, Source
from flame.data.examples.example import IGNORE, Example
from flame.data.series.encoder import SeriesEncoder
from flame.data.sources.records import BadRow
from flame.errors import ConfigError, DataError
from flame.losses import IGNORE_INDEX
from flame.models.build import model_class, plain_model
from flame.plugin import load_plugin
from flame.tasks.classification import Classification, ClassificationOptions

SMALL: dict[str, Any] = {"num_channels": 2, "hidden_size": 16, "num_hidden_layers": 1}


def write_series(folder: Path, labels: Any, name: str = "train.npz", seed: int = 0, steps: int = 12) -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).standard_normal((len(labels), steps, 2)).astype(np.float32) * [2, 30] + [5, -7]
    np.savez(folder / name, X=values.astype(np.float32), y=labels)
    return Source(path=str(folder / name))


def job_of(folder: Path, *sources: Source) -> JobConfig:
    job = JobConfig()
    job.job.dump_folder = str(folder / "run")
    job.data.sources = list(sources)
    return job


def task_of(job: JobConfig | None = None, **options: Any) -> Classification:
    task = Classification(ClassificationOptions(**options), None, job or JobConfig())
    task.features = features(HgrnTimeseriesConfig(**SMALL))
    return task


def extended(job: JobConfig, **options: Any) -> tuple[Classification, Any, Any]:
    """The task, and the class and the config that it trains."""
    task, config = task_of(job, **options), HgrnTimeseriesConfig(**SMALL)
    cls = model_class(load_plugin("hgrn_timeseries"), config, "sequence_classification")
    task.extend(cls, config)
    return task, cls, config


def read(encoder: SeriesEncoder, source: Source, count: int) -> list[Any]:
    """The first examples of a source."""
    records: list[Any] = encoder.open(source).read(range(count))
    return [encoder.encode(record, None, "") for record in records]


def outputs(*rows: list[float]) -> Any:
    return SimpleNamespace(logits=torch.tensor(rows))


@pytest.mark.parametrize(
    "options, key",
    [
        ({"label_smoothing": 1.0}, "label_smoothing = 1"),
        ({"label_smoothing": -0.1}, "label_smoothing = -0.1"),
        ({"label_smoothing": 0.1, "regression": True}, "label_smoothing"),
        ({"jitter": -1.0}, "jitter = -1"),
        ({"scale": -0.5}, "scale = -0.5"),
        ({"shift": -2}, "shift = -2"),
        ({"steps_per_batch": -1}, "steps_per_batch = -1"),
        ({"label_smoothing": math.nan}, "label_smoothing"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"task.{key}") as caught:
        ClassificationOptions(**options)
    assert "\n" not in str(caught.value)


def test_series_without_a_label_do_not_count() -> None:
    task = task_of()
    inputs = {"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])}
    labels = torch.tensor([[1], [IGNORE_INDEX], [0]])
    assert int(task.scored(inputs, labels)) == 2
    assert int(task.positions(inputs, labels)) == 4


def test_the_loss_is_the_summed_cross_entropy() -> None:
    logits, labels = (
        outputs([1.0, 2.0, 0.5], [0.0, 0.0, 9.0], [1.0, 1.0, 1.0]),
        torch.tensor([[1], [IGNORE_INDEX], [2]]),
    )
    by_hand = -(2.0 - math.log(math.exp(1) + math.exp(2) + math.exp(0.5))) + math.log(3)
    assert task_of().loss(logits, labels, {}).item() == pytest.approx(by_hand, rel=1e-6)
    smoothed = task_of(label_smoothing=0.3).loss(outputs([1.0, 2.0, 0.5]), torch.tensor([[1]]), {})
    logs = torch.tensor([1.0, 2.0, 0.5]).log_softmax(0)
    assert smoothed.item() == pytest.approx(-(0.7 * logs[1] + 0.1 * logs.sum()).item(), rel=1e-6)


def test_numbers_cost_their_squared_error_in_variances(tmp_path: Path) -> None:
    task, _, _ = extended(job_of(tmp_path, write_series(tmp_path, np.array([10.0, 30.0]))), regression=True)
    labels = torch.tensor([[30.0], [float(IGNORE_INDEX)], [0.0]])
    loss = task.loss(outputs([10.0], [5.0], [5.0]), labels, {})
    assert loss.item() == pytest.approx((20**2 + 5**2) / 10**2)
    assert int(task.scored({}, labels)) == 2


def test_whole_numbers_may_be_predicted_too(tmp_path: Path) -> None:
    source = write_series(tmp_path, np.array([3, 20, 7]))
    task, _, _ = extended(job_of(tmp_path, source), regression=True)
    encoder = task.encoder()
    assert [made.labels.tolist() for made in read(encoder, source, 3)] == [[3.0], [20.0], [7.0]]
    assert extended(job_of(tmp_path, source))[0].classes == ["3", "7", "20"]


def test_a_number_that_is_minus_100_is_scored_like_any_other(tmp_path: Path) -> None:
    targets = np.array([-100.0, -100.5, -99.5, -101.0])
    source = write_series(tmp_path, targets)
    task, _, _ = extended(job_of(tmp_path, source), regression=True)
    encoder = task.encoder()
    labels = torch.from_numpy(np.stack([made.labels for made in read(encoder, source, 4)]))
    assert int(task.scored({}, labels)) == 4
    assert labels[:, 0].tolist() == pytest.approx(targets.tolist(), abs=1e-4)
    assert encoder.blank().labels.tolist() == [IGNORE]


def test_predictions_begin_at_the_mean_of_the_numbers(tmp_path: Path) -> None:
    targets = 1000.0 + 50 * np.random.default_rng(0).standard_normal(40)
    source = write_series(tmp_path, targets)
    task, cls, config = extended(job_of(tmp_path, source), regression=True)
    assert config.num_labels == 1 and config.problem_type == "regression"
    assert (config.label_mean, config.label_std) == pytest.approx((targets.mean(), targets.std()))
    model = plain_model(cls, config, 0)
    encoder = task.encoder()
    examples = read(encoder, source, 40)
    values = torch.from_numpy(np.stack([made.values for made in examples]))
    labels = torch.from_numpy(np.stack([made.labels for made in examples]))
    with torch.no_grad():
        found = model.eval()(input_values=values)
    assert (found.logits - targets.mean()).abs().max() < targets.std()
    assert task.loss(found, labels, {}).item() / 40 == pytest.approx(1.0, abs=0.3)


def test_classes_and_their_names_are_the_training_sets(tmp_path: Path) -> None:
    one, two = (
        write_series(tmp_path / name, np.array(names)) for name, names in (("1", ["b", "a"]), ("2", ["c", "a"]))
    )
    task, _, config = extended(job_of(tmp_path, one, two))
    assert task.classes == ["a", "b", "c"]
    assert config.id2label == {0: "a", 1: "b", 2: "c"} and config.label2id["c"] == 2 and config.num_labels == 3
    assert config.problem_type == "single_label_classification"
    encoder = task.encoder()
    assert [made.labels.tolist() for made in read(encoder, two, 2)] == [[2], [0]]
    with pytest.raises(DataError, match="class 'd', which the training set does not have"):
        encoder.open(write_series(tmp_path / "3", np.array(["a", "d"])))


def test_numbered_classes_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    task, _, _ = extended(job_of(tmp_path, write_series(tmp_path, np.array([10, 9, 2, 10]))))
    assert task.classes == ["2", "9", "10"]


def test_values_are_normalised_by_the_training_sets_mean_and_deviation(tmp_path: Path) -> None:
    source = write_series(tmp_path, np.array(["a", "b"] * 5))
    task, _, _ = extended(job_of(tmp_path, source))
    values = np.load(source.path)["X"].reshape(-1, 2).astype(np.float64)
    assert task.features.mean == pytest.approx(values.mean(0).tolist())
    assert task.features.std == pytest.approx(values.std(0).tolist())
    encoder = task.encoder()
    made = np.concatenate([made.values for made in read(encoder, source, 10)])
    assert made.mean(0) == pytest.approx([0, 0], abs=1e-6)
    assert made.std(0) == pytest.approx([1, 1], rel=1e-5)


def test_classes_and_statistics_are_those_of_the_run_that_goes_on(tmp_path: Path) -> None:
    first = write_series(tmp_path / "1", np.array(["a", "c"]))
    job = job_of(tmp_path, first)
    job.checkpoint.enable = True
    task, _, config = extended(job)
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    config.save_pretrained(model)
    (model / "preprocessor_config.json").write_text(json.dumps(task.features.to_dict()))
    (tmp_path / "run" / job.checkpoint.folder / "step-1").mkdir(parents=True)
    job.data.sources = [write_series(tmp_path / "2", np.array(["a", "b", "c"]), seed=1)]
    again, _, _ = extended(job)
    assert again.classes == ["a", "c"]
    assert again.features.mean == task.features.mean and again.features.std == task.features.std


def test_predictions_are_in_the_numbers_of_the_run_that_goes_on(tmp_path: Path) -> None:
    job = job_of(tmp_path, write_series(tmp_path / "1", np.array([1.0, 3.0])))
    job.checkpoint.enable = True
    task, _, config = extended(job, regression=True)
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    config.save_pretrained(model)
    (model / "preprocessor_config.json").write_text(json.dumps(task.features.to_dict()))
    (tmp_path / "run" / job.checkpoint.folder / "step-1").mkdir(parents=True)
    job.data.sources = [write_series(tmp_path / "2", np.array([100.0, 300.0]))]
    _, _, again = extended(job, regression=True)
    assert (again.label_mean, again.label_std) == (2.0, 1.0)


@pytest.mark.parametrize("regression, labels, found", [(True, ["a", "b"], "classes"), (False, [0.5, 1.25], "numbers")])
def test_labels_of_the_other_kind_are_refused(tmp_path: Path, regression: bool, labels: list, found: str) -> None:
    with pytest.raises(DataError, match=f"{found} for labels.*task.regression"):
        extended(job_of(tmp_path, write_series(tmp_path, np.array(labels))), regression=regression)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("regression", [True, False])
def test_series_without_labels_are_refused(tmp_path: Path, regression: bool) -> None:
    np.savez(tmp_path / "bare.npz", X=np.zeros((3, 4, 2), np.float32))
    with pytest.raises(DataError, match="label_column") as caught:
        task, _, _ = extended(job_of(tmp_path, Source(path=str(tmp_path / "bare.npz"))), regression=regression)
        task.encoder().open(Source(path=str(tmp_path / "bare.npz")))
    assert "\n" not in str(caught.value)


def test_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", X=np.zeros((3, 4, 1), np.float32), y=np.array(["a", "b", "a"]))
    with pytest.raises(DataError, match="has 1 channels, the model 2: set num_channels"):
        extended(job_of(tmp_path, Source(path=str(tmp_path / "one.npz"))))


def test_values_that_are_infinite_are_bad_rows_and_missing_ones_the_mean(tmp_path: Path) -> None:
    task, _, _ = extended(job_of(tmp_path, write_series(tmp_path, np.array(["a", "b"]))))
    encoder = task.encoder()
    values = np.ones((3, 2), np.float32)
    values[1, 0] = np.nan
    made = encoder.encode({"values": values, "label": "a"}, None, "w")
    assert isinstance(made, Example) and made.values[1, 0] == 0
    values[1, 0] = np.inf
    infinite = encoder.encode({"values": values, "label": "a"}, None, "w")
    assert isinstance(infinite, BadRow) and infinite.reason == "not finite"
    assert isinstance(encoder.encode({"values": values, "label": None}, None, "w"), BadRow)
    assert isinstance(encoder.encode({"values": values[:0], "label": "a"}, None, "w"), BadRow)


def test_alterations_are_drawn_by_the_key(tmp_path: Path) -> None:
    job = job_of(tmp_path, write_series(tmp_path, np.array(["a", "b"])))
    record = {"values": np.arange(20, dtype=np.float32).reshape(10, 2), "label": "a"}

    def values(key: Any, **options: Any) -> np.ndarray:
        made = extended(job, **options)[0].encoder().encode(record, key, "")
        assert isinstance(made, Example)
        return made.values

    plain = values(None, jitter=0.5, scale=0.5, shift=3)
    assert np.array_equal(plain, values((0, 0, 1)))
    altered = values((0, 0, 1), jitter=0.5, scale=0.5, shift=3)
    assert np.array_equal(altered, values((0, 0, 1), jitter=0.5, scale=0.5, shift=3))
    assert altered.dtype == np.float32 and altered.shape == plain.shape and not np.allclose(altered, plain)
    assert not np.array_equal(altered, values((0, 0, 2), jitter=0.5, scale=0.5, shift=3))
    ratios = values((0, 0, 1), scale=0.5) / plain
    assert np.ptp(ratios) < 1e-4 and abs(ratios.mean() - 1) > 1e-3
    moved = values((0, 0, 3), shift=3)
    assert any(np.array_equal(moved, plain[np.clip(np.arange(10) - by, 0, 9)]) for by in range(-3, 4))


def measured(task: Classification, logits: Any, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        task.loss_sum(lambda **inputs: logits, {}, labels)
    return task.tally()


def test_validation_counts_true_by_predicted_classes() -> None:
    rows = ([9.0, 0, 0], [0, 9.0, 0], [0, 9.0, 0], [0, 0, 9.0], [9.0, 0, 0])
    labels = torch.tensor([[0], [0], [1], [2], [IGNORE_INDEX]])
    task = task_of()
    tally = measured(task, outputs(*rows), labels)
    assert tally["confusion"].tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    figures = task.report(0.5, 4.0, tally)
    assert figures["accuracy"] == pytest.approx(3 / 4)
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert task.report(0.5, 4.0, {}) == {}
    nothing = measured(task, outputs(*rows[:1]), torch.tensor([[IGNORE_INDEX]]))
    assert nothing["confusion"].shape == (3, 3) and not nothing["confusion"].any()


def test_validation_of_numbers_tells_errors_and_r2(tmp_path: Path) -> None:
    task, _, _ = extended(job_of(tmp_path, write_series(tmp_path, np.array([1.0, 3.0]))), regression=True)
    wanted, predicted = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    logits = outputs(*[[float(value)] for value in predicted], [7.0])
    labels = torch.tensor([*wanted.tolist(), float(IGNORE_INDEX)]).unsqueeze(1)
    figures = task.report(0.0, 3.0, {name: value.item() for name, value in measured(task, logits, labels).items()})
    errors = predicted - wanted
    assert figures["mae"] == pytest.approx(np.abs(errors).mean())
    assert figures["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert figures["r2"] == pytest.approx(1 - (errors**2).sum() / ((wanted - wanted.mean()) ** 2).sum())
