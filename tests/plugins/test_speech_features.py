"""Features of speech equal Kaldi's definition, written down step by step."""

import sys

import numpy as np
import pytest
from transformers import AutoConfig

from flame.plugin import load_plugin

BANDS = 40


def extractor(rate: int):
    plugin = load_plugin("hgrn_asr")
    assert plugin.features is not None
    return plugin.features(AutoConfig.for_model("hgrn_asr", sampling_rate=rate, num_mel_bins=BANDS, normalise="none"))


def mel(frequency: np.ndarray) -> np.ndarray:
    return 1127 * np.log(1 + frequency / 700)


def plain_features(waveform: np.ndarray, rate: int) -> np.ndarray:
    """[T, BANDS]: frames of 25 ms every 10 ms, their logarithms of mel energies, in float64 and one by one."""
    size, hop = round(0.025 * rate), round(0.01 * rate)
    length = 1 << (size - 1).bit_length()
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / (size - 1))) ** 0.85
    bins = np.arange(length // 2 + 1)
    edges = np.linspace(mel(np.array(20.0)), mel(np.array(rate / 2)), BANDS + 2)
    place = mel(bins * rate / length)
    rows = []
    for start in range(0, len(waveform) - size + 1, hop):
        frame = waveform[start : start + size].astype(np.float64)
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        spectrum = np.exp(-2j * np.pi * np.outer(bins, np.arange(size)) / length) @ (frame * window)
        power = np.abs(spectrum) ** 2
        rising = (place - edges[:-2, None]) / np.diff(edges)[:-1, None]
        falling = (edges[2:, None] - place) / np.diff(edges)[1:, None]
        bank = np.maximum(0, np.minimum(rising, falling))  # [BANDS, bins]
        rows.append(np.log(np.maximum(bank @ power, 1e-10)))
    return np.array(rows)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_features_are_kaldis(rate: int) -> None:
    time = np.arange(rate // 3) / rate
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(time))
    waveform = (0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 + noise).astype(np.float32)
    features = extractor(rate).raw_features(waveform)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, plain_features(waveform, rate), atol=2e-3)


def test_features_do_not_depend_on_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    features = extractor(16000)
    waveform = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    expected = features.raw_features(waveform)
    monkeypatch.setattr(sys.modules[type(features).__module__], "rfft", np.fft.rfft)
    np.testing.assert_allclose(features.raw_features(waveform), expected, atol=1e-4)
