"""Speech recognition: options, what counts, transcripts as labels, how long recordings become, statistics."""

import json
import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from spoken import RATE, SMALL, ctc_task, extended, spoken, write_recordings

from flame.config import Data, JobConfig, Source
from flame.data.audio.encoder import AudioEncoder
from flame.data.examples.build import build_example_loader
from flame.data.examples.example import Example
from flame.data.sources.records import BadRow
from flame.errors import ConfigError, DataError
from flame.losses import IGNORE_INDEX
from flame.tasks.ctc import CTC, CTCOptions
from flame.tokenizer.characters import character_tokenizer

ALONE: Any = SimpleNamespace(num_workers=0, prefetch_factor=None, pin_memory=False)


def labels_of(*rows: list[int]) -> torch.Tensor:
    most = max(1, *map(len, rows))
    return torch.tensor([row + [IGNORE_INDEX] * (most - len(row)) for row in rows])


@pytest.mark.parametrize(
    "options, key",
    [
        ({"noise_share": 1.5}, "noise_share = 1.5"),
        ({"noise_share": -0.1}, "noise_share = -0.1"),
        ({"noise_snr": [30.0, 5.0]}, "noise_snr"),
        ({"noise_snr": [5.0]}, "noise_snr"),
        ({"speeds": [0.9, 3.0]}, "speeds"),
        ({"speeds": [0.0]}, "speeds"),
        ({"time_masks": -1}, "time_masks = -1"),
        ({"time_mask_frames": -1}, "time_mask_frames = -1"),
        ({"frequency_masks": -1}, "frequency_masks = -1"),
        ({"frequency_mask_bands": -1}, "frequency_mask_bands = -1"),
        ({"examples": -1}, "examples = -1"),
        ({"steps_per_batch": -1}, "steps_per_batch = -1"),
        ({"beam_width": 0}, "beam_width = 0"),
        ({"language_model": "words.arpa"}, "language_model"),
        ({"noise_path": "noise"}, "noise_path"),
        ({"noise_share": math.nan}, "noise_share"),
        ({"speeds": [math.nan]}, "speeds"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"task.{key}") as caught:
        CTCOptions(**options)
    assert "\n" not in str(caught.value)


def test_a_language_model_that_is_not_there_is_told_at_the_start() -> None:
    with pytest.raises(DataError, match="no language model 'absent.arpa'"):
        ctc_task(decoder="beam", language_model="absent.arpa")


def test_cut_recordings_and_tokenizers_without_a_blank_are_refused() -> None:
    job = JobConfig()
    job.data.too_long = "cut"
    with pytest.raises(ConfigError, match="data.too_long = 'cut'"):
        ctc_task(job=job)
    tokenizer = character_tokenizer("ab")
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="padding token"):
        CTC(CTCOptions(), tokenizer, JobConfig())


def test_frames_of_recordings_without_a_transcript_do_not_count() -> None:
    task = ctc_task()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    labels = labels_of([3, 4], [], [2])
    inputs = {"attention_mask": mask}
    assert int(task.scored(inputs, labels)) == int(task.positions(inputs, labels)) == 7
    assert int(task.counts(labels)["labels"]) == 3
    assert int(task.scored(inputs, torch.full((3, 2), IGNORE_INDEX))) == 0


def test_training_reports_the_loss_per_label_and_validation_error_rates() -> None:
    task = ctc_task()
    assert task.report(0.5, 100.0, {"labels": 25.0}) == {"loss_per_label": 2.0}
    assert task.report(0.0, 0.0, {"labels": 0.0}) == {"loss_per_label": 0.0}
    edits = {"word_edits": 1.0, "words": 4.0, "character_edits": 3.0, "characters": 12.0}
    figures = task.report(0.5, 100.0, {"labels": 25.0, **edits})
    assert figures == {"loss_per_label": 2.0, "wer": 0.25, "cer": 0.25}


class Hears:
    """A model whose best path says some labels, a blank after each."""

    def __init__(self, *rows: list[int]):
        steps = max(2 * len(row) for row in rows)
        self.logits = torch.zeros(len(rows), steps, 6)
        for row, labels in enumerate(rows):
            path = [step for label in labels for step in (label, 0)] + [5] * (steps - 2 * len(labels))
            self.logits[row, torch.arange(steps), torch.tensor(path)] = 9.0

    def __call__(self, **inputs: Any) -> Any:
        return SimpleNamespace(logits=self.logits)


@pytest.mark.parametrize("decoder", ["greedy", "beam"])
def test_validation_reads_what_is_before_the_padding_and_skips_blank_rows(
    decoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = extended(ctc_task(decoder=decoder, examples=1))
    a, b, c, space = 2, 3, 4, 5
    labels = labels_of([a, b, space, c], [a], [])
    frames = torch.arange(16)[None]
    inputs = {"input_features": frames, "attention_mask": (frames < torch.tensor([16, 4, 16])[:, None]).long()}
    with torch.no_grad():
        task.loss_sum(Hears([a, b, space, b], [a], [c, c]), inputs, labels)
    assert {name: value.item() for name, value in task.tally().items()} == {
        "word_edits": 1,
        "words": 3,
        "character_edits": 1,
        "characters": 5,
    }
    caplog.set_level("INFO")
    task.validated(1, {}, tmp_path)
    assert [line.split() for line in caplog.messages] == [["said", "ab", "c"], ["heard", "ab", "b"]]
    with torch.no_grad():
        task.loss_sum(Hears([c]), {"attention_mask": torch.ones(1, 2).long()}, labels_of([]))
    assert not any(value.item() for value in task.tally().values())


def test_a_training_pass_reads_nothing() -> None:
    task = extended(ctc_task())
    task.loss_sum(Hears([2]), {"attention_mask": torch.ones(1, 2).long()}, labels_of([2]))
    assert not task.tally()


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
    assert isinstance(plain, np.ndarray) and np.array_equal(spelled, plain)


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
    indices = np.arange(len(lengths))
    seconds = opened.lengths(indices)
    plain = [example(encoder.encode(record, None, "")) for record in opened.read(indices.tolist())]
    assert encoder.steps(seconds, None).tolist() == [len(made.values) for made in plain]
    keys = [(7, 0, int(index)) for index in indices]
    drawn = [example(encoder.encode(record, key, "")) for record, key in zip(opened.read(indices), keys, strict=True)]
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


def test_a_sample_is_a_batch_of_the_task() -> None:
    task = extended(ctc_task())
    config = SimpleNamespace(vocab_size=SMALL["vocab_size"])
    inputs, labels = task.sample(config, rows=2, length=32, generator=torch.Generator())  # type: ignore[arg-type]
    assert inputs["input_features"].shape == (2, 32, 12) and inputs["attention_mask"].shape == (2, 32)
    assert labels.shape == (2, 2) and bool((labels > 0).all())
