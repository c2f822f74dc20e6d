"""A language of tones: every letter is a pitch, and words are parted by silence."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

RATE = 8000
PITCHES = {"a": 400.0, "b": 800.0, "c": 1500.0, "d": 2600.0}
LETTER, GAP, SPACE = 0.12, 0.04, 0.3  # seconds of a letter, of the silence behind it, and of that between words


class Said(NamedTuple):
    """A recording, and the seconds in which each of its words sounds."""

    samples: np.ndarray
    times: list[tuple[float, float]]


def say(text: str, rate: int = RATE, seed: int = 0) -> Said:
    """Says words of letters, with a little noise; float32 [samples]."""
    rng = np.random.default_rng(seed)
    parts, times, now = [_silence(0.1, rate)], [], 0.1
    for number, word in enumerate(text.split()):
        if number:
            parts.append(_silence(SPACE, rate))
            now += SPACE
        first = now
        for letter in word:
            time = np.arange(round(LETTER * rate)) / rate
            tone = 0.3 * np.sin(2 * np.pi * PITCHES[letter] * time + rng.uniform(0, 6))
            parts += [tone.astype(np.float32), _silence(GAP, rate)]
            now += LETTER + GAP
        times.append((first, now - GAP))
    samples = np.concatenate([*parts, _silence(0.1, rate)])
    noise = 10 ** rng.uniform(-4, -2) * rng.standard_normal(len(samples))
    return Said(samples + noise.astype(np.float32), times)


def random_text(rng: np.random.Generator, most_words: int = 4) -> str:
    """One to ``most_words`` words of two or three letters."""
    words = rng.integers(1, most_words + 1)
    return " ".join("".join(rng.choice(list(PITCHES), rng.integers(2, 4))) for _ in range(words))


def write_said(path: Path, text: str, rate: int = RATE, seed: int = 0) -> Path:
    soundfile.write(path, say(text, rate, seed).samples, rate)
    return path


def write_corpus(folder: Path, count: int, seed: int) -> Path:
    """Recordings and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        text = random_text(rng)
        write_said(folder / f"{number}.wav", text, seed=1000 * seed + number)
        lines.append(json.dumps({"audio": f"{number}.wav", "text": text}))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def _silence(seconds: float, rate: int) -> np.ndarray:
    return np.zeros(round(seconds * rate), np.float32)
