"""Jobs on recordings and series that the tests make."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np

from tests.runs import Materials, write_job

RATE = 8000
WORDS = ["one two", "three", "four five six", "hello"]
ASR = {
    "model_type": "hgrn_asr",
    "sampling_rate": RATE,
    "num_mel_bins": 16,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "subsampling": 2,
    "vocab_size": 32,
}
SERIES = {"model_type": "hgrn_timeseries", "num_channels": 2, "hidden_size": 32, "num_hidden_layers": 1}


def recordings(folder: Path, count: int) -> Path:
    """A folder of tones of 1.0, 1.1, 1.2 ... seconds, each with its transcript; the last is no audio."""
    folder.mkdir()
    for number in range(count):
        time = np.arange(round(RATE * (1 + number / 10))) / RATE
        with wave.open(str(folder / f"{number:02}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((8000 * np.sin(2000 * (1 + number % 4) * time)).astype("<i2").tobytes())
        (folder / f"{number:02}.txt").write_text(WORDS[number % len(WORDS)])
    (folder / f"{count - 1:02}.wav").write_bytes(b"no audio at all")
    return folder


def series(path: Path, labels: list[Any]) -> Path:
    """Series of two channels and 5, 6, 7 ... steps."""
    generator = np.random.default_rng(0)
    lengths = np.arange(5, 5 + len(labels))
    np.savez(path, values=generator.standard_normal((lengths.sum(), 2)), lengths=lengths, y=np.array(labels))
    return path


def ctc_job(materials: Materials, folder: Path, source: Path, changes: dict[str, Any] | None = None) -> Path:
    """A job on recordings."""
    return _job(
        materials,
        folder,
        ASR,
        source,
        {"model.tokenizer_path": "builtin:characters-en", "task.name": "ctc", **(changes or {})},
    )


def series_job(materials: Materials, folder: Path, source: Path, changes: dict[str, Any] | None = None) -> Path:
    """A job on series."""
    return _job(
        materials,
        folder,
        SERIES,
        source,
        {"model.tokenizer_path": "", "task.name": "classification", **(changes or {})},
    )


def _job(materials: Materials, folder: Path, model: dict[str, Any], source: Path, changes: dict[str, Any]) -> Path:
    config = folder.with_name("model.json")
    config.write_text(json.dumps(model))
    values = {
        "model.config": str(config),
        "training.seq_len": 400,
        "training.local_batch_size": 0,
        "data.sources": [{"path": str(source)}],
        **changes,
    }
    return write_job(materials, folder, values)
