"""Recordings and series that tests make for themselves."""

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RATE = 8000
WORDS = ["one two", "three", "four five six", "hello"]


def recordings(folder: Path, count: int, shortest: float = 1.0, step: float = 0.1) -> Path:
    """A folder of tones at 8 kHz, each with its transcript.

    Args:
        folder: to make.
        count: of the recordings.
        shortest: seconds of the first.
        step: seconds by which each is longer than the one before.
    """
    folder.mkdir()
    for number in range(count):
        time = np.arange(round(RATE * (shortest + step * number))) / RATE
        with wave.open(str(folder / f"{number:02}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((8000 * np.sin(2000 * (1 + number % 4) * time)).astype("<i2").tobytes())
        (folder / f"{number:02}.txt").write_text(WORDS[number % len(WORDS)])
    return folder


def series(path: Path, labels: Sequence[str] | np.ndarray) -> Path:
    """An .npz file of series with two channels and 5, 6, 7 ... steps, one for every label."""
    generator = np.random.default_rng(0)
    lengths = np.arange(5, 5 + len(labels))
    np.savez(path, values=generator.standard_normal((lengths.sum(), 2)), lengths=lengths, y=np.array(labels))
    return path
