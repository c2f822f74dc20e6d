"""Recordings as examples: transcripts as labels, how long they become, what is drawn for them, statistics."""

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from spoken import RATE, ctc_task, extended, spoken, write_recordings

from flame.config import Data, JobConfig, Source
from flame.data.audio.encoder import AudioEncoder
from flame.data.examples.build import build_example_loader
from flame.data.examples.example import Example
from flame.data.sources.records import BadRow
from flame.errors import DataError
from flame.losses import IGNORE_INDEX
from flame.tasks.ctc import CTC

ALONE: Any = SimpleNamespace(num_workers=0, prefetch_factor=None, pin_memory=False)


@pytest.mark.parametrize("unknown, text", [("drop", "abb"), ("keep", "ab<unk>b")])
def test_unknown_characters_are_dropped_or_kept(unknown: str, text: str) -> None:
    task = extended(ctc_task(unknown=unknown, language=""))
    made = task.encoder().encode(spoken("abxb"), None, "file:1")
    assert isinstance(made, Example)
    assert "".join(task.tokenizer.convert_ids_to_tokens(made.labels.tolist())) == text


def test_recordings_with_unknown_characters_are_left_out_and_told() -> None:
    made = extended(ctc_task(language="")).encoder().encode(spoken("aybx"), None, "file:1")
    assert made == BadRow("unknown characters", "file:1", "'xy' in 'aybx'")


def test_unknown_characters_may_end_the_run() -> None:
    encoder = extended(ctc_task(unknown="error", language="")).encoder()
    assert isinstance(encoder.encode(spoken("ab"), None, "file:1"), Example)
    with pytest.raises(DataError, match="file:1: unknown characters .*'x' in 'abx'.*task.unknown") as caught:
        encoder.encode(spoken("abx"), None, "file:1")
    assert "\n" not in str(caught.value)


def test_transcripts_without_known_characters_are_bad_rows() -> None:
    encoder = extended(ctc_task(unknown="drop", language="")).encoder()
    assert encoder.encode(spoken("xyz"), None, "file:1") == BadRow("empty transcript", "file:1")


def test_transcripts_are_normalised_by_the_rules_of_the_language() -> None:
    alphabet = " abcdefghijklmnopqrstuvwxyz'"
    spelled = extended(ctc_task(alphabet)).encoder().labels("Two, 2!", "")
    plain = extended(ctc_task(alphabet, language="")).encoder().labels("two two", "")
    assert isinstance(spelled, np.ndarray) and isinstance(plain, np.ndarray) and np.array_equal(spelled, plain)


@pytest.mark.parametrize("text, steps", [("abcabc", 6), ("aabbcc", 9)])
def test_a_recording_must_have_a_step_for_each_label_and_for_blanks_between_equal_ones(text: str, steps: int) -> None:
    encoder = extended(ctc_task(language="")).encoder()
    size, hop = encoder.features.frame_samples, encoder.features.hop_length

    def made(frames: int) -> Example | BadRow:
        samples = np.random.default_rng(0).standard_normal(size + (frames - 1) * hop).astype(np.float32)
        return encoder.encode(spoken(text, samples), None, "file:1")

    assert isinstance(made(2 * steps - 1), Example), "two frames make a step, also the last one alone"
    short = made(2 * steps - 2)
    assert isinstance(short, BadRow) and short.reason == "too short for its transcript"
    assert short.detail == f"{steps - 1} steps for 6 labels, which need {steps}"


def test_features_of_faulty_sounds_are_bad_rows() -> None:
    encoder = extended(ctc_task(language="")).encoder()
    samples = np.zeros(RATE, np.float32)
    samples[5] = np.nan
    made = encoder.encode(spoken("ab", samples), None, "file:1")
    assert isinstance(made, BadRow) and made.reason == "not finite"


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 11025])
@pytest.mark.parametrize("speeds", [[], [0.9, 1.0, 1.1], [0.5, 2.0]])
def test_steps_are_the_frames_that_encoding_gives(tmp_path: Path, rate: int, speeds: list[float]) -> None:
    lengths = [0.01, 0.025, 0.0251, 0.5, 0.50006, 0.999, 1.2345, 0.73129, 2.02]
    source = write_recordings(tmp_path, ["a"] * len(lengths), lengths, rate)
    encoder = extended(ctc_task(speeds=speeds)).encoder()
    opened = encoder.open(source)
    indices = list(range(len(lengths)))
    seconds = opened.lengths(np.array(indices))
    records: list[Any] = opened.read(indices)
    plain = [example(encoder.encode(record, None, "")) for record in records]
    assert encoder.steps(seconds, None).tolist() == [len(made.values) for made in plain]
    keys = [(7, 0, index) for index in indices]
    drawn = [example(encoder.encode(record, key, "")) for record, key in zip(records, keys, strict=True)]
    made_steps = np.array([len(made.values) for made in drawn])
    assert np.abs(encoder.steps(seconds, keys) - made_steps).max() <= (1 if speeds else 0)


def example(made: Example | BadRow) -> Example:
    assert isinstance(made, Example), made
    return made


def test_the_same_key_draws_the_same_and_another_key_something_else() -> None:
    options: dict[str, Any] = {"noise_share": 1.0, "speeds": [0.9, 1.1], "time_masks": 1, "frequency_masks": 1}
    encoder = extended(ctc_task(language="", **options)).encoder()
    first, again, other, plain = (
        example(encoder.encode(spoken("ab"), key, "")).values for key in ((1, 0, 5), (1, 0, 5), (1, 0, 6), None)
    )
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.allclose(first, other)
    assert np.array_equal(plain, encoder.features.features(spoken("ab")["audio"].load(RATE)))


def batches_of(encoder: AudioEncoder, source: Source, longest: int, count: int = 4, on_bad_row: Any = "skip") -> Any:
    loader = build_example_loader(
        sources=[source],
        data=Data(on_bad_row=on_bad_row),
        encoder=encoder,
        longest=longest,
        budget=0,
        global_batch_size=2,
        local_batch_size=2,
        dp_rank=0,
        dp_world_size=1,
        seed=1,
        dataloader=ALONE,
    )
    return list(islice(loader, count))


class TellsLess(AudioEncoder):
    """Tells a frame less than it makes, as rounding may."""

    def steps(self, lengths: np.ndarray, keys: Any) -> np.ndarray:
        return super().steps(lengths, keys) - 1


def test_a_recording_that_turns_out_longer_than_was_told_is_left_out(tmp_path: Path) -> None:
    source = write_recordings(tmp_path, ["ab", "ba"], [0.5, 1.0])
    encoder = extended(ctc_task()).encoder()
    encoder.__class__ = TellsLess
    assert encoder.steps(np.array([1.0]), None) == 97
    rows = [row for _, labels in batches_of(encoder, source, longest=97) for row in labels.tolist()]
    assert rows and all(row == [2, 3] for row in rows)
    assert any([3, 2] in labels.tolist() for _, labels in batches_of(encoder, source, longest=98))
    with pytest.raises(DataError, match="longer than training.seq_len"):
        batches_of(encoder, source, longest=97, on_bad_row="error")


@pytest.mark.parametrize("policy", ["skip", "error"])
def test_bad_rows_of_transcripts_go_by_the_policy(tmp_path: Path, policy: str) -> None:
    source = write_recordings(tmp_path, ["ab", "xyz"], [1.0, 1.0])
    encoder = extended(ctc_task(language="")).encoder()
    if policy == "error":
        with pytest.raises(DataError, match="unknown characters"):
            batches_of(encoder, source, longest=400, on_bad_row="error")
    else:
        rows = [row for _, labels in batches_of(encoder, source, longest=400) for row in labels.tolist()]
        assert rows and all(row == [2, 3] for row in rows if row != [IGNORE_INDEX])


GLOBAL: dict[str, Any] = {"normalise": "global"}


def fitted(job: JobConfig) -> CTC:
    return extended(ctc_task(model=GLOBAL, job=job), GLOBAL)


def test_features_are_normalised_by_the_training_sets_mean_and_deviation(tmp_path: Path) -> None:
    job = JobConfig()
    job.job.dump_folder = str(tmp_path / "run")
    job.data.sources = [
        write_recordings(tmp_path / "one", ["a", "b"], [0.5, 1.0]),
        write_recordings(tmp_path / "two", ["c"], [2.0]),
    ]
    task = fitted(job)
    raw = np.concatenate(
        [task.features.raw_features(soundfile.read(file, dtype="float32")[0]) for file in tmp_path.rglob("*.wav")]
    ).astype(np.float64)
    assert task.features.mean == pytest.approx(raw.mean(0).tolist(), rel=1e-5)
    assert task.features.std == pytest.approx(raw.std(0).tolist(), rel=1e-4)
    assert task.features.normalised(raw.astype(np.float32)).std(0) == pytest.approx(np.ones(12), rel=1e-3)


def test_statistics_are_those_of_the_run_that_goes_on_or_of_the_model_it_starts_from(tmp_path: Path) -> None:
    job = JobConfig()
    job.job.dump_folder, job.checkpoint.enable = str(tmp_path / "run"), True
    job.data.sources = [write_recordings(tmp_path / "one", ["a"], [0.5])]
    before = fitted(job).features
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "preprocessor_config.json").write_text(json.dumps(before.to_dict()))
    job.data.sources = [write_recordings(tmp_path / "two", ["a", "b"], [0.5, 1.0])]
    assert fitted(job).features.mean != before.mean, "without a checkpoint, the run begins anew"
    (tmp_path / "run" / job.checkpoint.folder / "step-1").mkdir(parents=True)
    assert fitted(job).features.mean == before.mean and fitted(job).features.std == before.std
    other = JobConfig()
    other.job.dump_folder, other.data.sources = str(tmp_path / "other"), job.data.sources
    other.checkpoint.initial_load_path = str(tmp_path / "run" / "model")
    assert fitted(other).features.mean == before.mean


def test_a_training_set_that_cannot_be_read_has_no_statistics(tmp_path: Path) -> None:
    job = JobConfig()
    job.job.dump_folder = str(tmp_path / "run")
    source = write_recordings(tmp_path / "one", ["a"], [0.5], stated=[0.5])
    (tmp_path / "one" / "0.wav").write_bytes(b"noise")
    job.data.sources = [source]
    with pytest.raises(DataError, match="no recording that can be read"):
        fitted(job)
