"""Sounds that tests make themselves."""

import io
from pathlib import Path

import numpy as np
import soundfile


def tone(seconds: float, rate: int, pitch: float = 220.0) -> np.ndarray:
    """A tone with a slow swell; float32 [samples]."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * pitch * time) * (0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * time))).astype(np.float32)


def write_tone(path: Path, seconds: float = 0.5, rate: int = 16000, pitch: float = 220.0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, rate, pitch), rate, **options)
    return path


def cut(path: Path, share: float) -> Path:
    """The same file with nothing after this share of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def content(seconds: float = 0.5, rate: int = 16000, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds, rate), rate, format=kind)
    return buffer.getvalue()
