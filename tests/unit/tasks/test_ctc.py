"""Speech recognition: options, what counts, what is read in validation and reported."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from spoken import SMALL, ctc_task, extended

from flame.config import JobConfig
from flame.errors import ConfigError, DataError
from flame.losses import IGNORE_INDEX
from flame.tasks.ctc import CTC, CTCOptions
from flame.tokenizer.characters import character_tokenizer


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


def test_a_sample_is_a_batch_of_the_task() -> None:
    task = extended(ctc_task())
    config = SimpleNamespace(vocab_size=SMALL["vocab_size"])
    inputs, labels = task.sample(config, rows=2, length=32, generator=torch.Generator())  # type: ignore[arg-type]
    assert inputs["input_features"].shape == (2, 32, 12) and inputs["attention_mask"].shape == (2, 32)
    assert labels.shape == (2, 2) and bool((labels > 0).all())
