"""Recordings of tones, and what encodes them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile

from custom_models.hgrn_asr import HgrnAsrConfig, HgrnAsrForCTC, features
from flame.config import JobConfig, Source
from flame.tasks.ctc import CTC, CTCOptions
from flame.tokenizer.characters import character_tokenizer

RATE = 8000
SMALL: dict[str, Any] = {"vocab_size": 6, "sampling_rate": RATE, "num_mel_bins": 12, "subsampling": 2}


def ctc_task(
    alphabet: str = "abc ", model: dict[str, Any] | None = None, job: JobConfig | None = None, **options: Any
) -> CTC:
    """The task with a small model's features, before it has seen any data."""
    config = job or JobConfig()
    config.training.seq_len = config.training.seq_len or 400
    task = CTC(CTCOptions(**options), character_tokenizer(alphabet), config)
    task.features = features(HgrnAsrConfig(**{**SMALL, **(model or {})}))
    return task


def extended(task: CTC, model: dict[str, Any] | None = None) -> CTC:
    task.extend(HgrnAsrForCTC, HgrnAsrConfig(**{**SMALL, **(model or {})}))
    return task


def write_recordings(
    folder: Path, texts: list[str], seconds: list[float], rate: int = RATE, stated: list[float] | None = None
) -> Source:
    """Noise of these lengths, its files and a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = []
    for number, (text, length) in enumerate(zip(texts, seconds, strict=True)):
        file = folder / f"{number}.wav"
        loudness = 0.05 * (1 + number)
        soundfile.write(file, loudness * rng.standard_normal(round(length * rate)).clip(-3, 3), rate, subtype="FLOAT")
        line = {"audio": file.name, "text": text}
        lines.append(line if stated is None else {**line, "duration": stated[number]})
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Source(path=str(manifest))


def spoken(text: str, samples: np.ndarray | None = None) -> dict[str, Any]:
    """A record whose recording is in memory."""
    sound = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) if samples is None else samples
    return {"text": text, "audio": SimpleNamespace(load=lambda rate: sound)}
