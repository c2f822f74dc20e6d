"""Augmentation: a function of its input and the generator's seed, of the strength it is told."""

import numpy as np
import pytest
from sounds import tone

from flame.data.audio.augment import add_noise, spec_augment, speed


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pitch(audio: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(audio)).argmax() * rate / len(audio))


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_changes_length_and_pitch(factor):
    audio = tone(2.0, 8000, 200)
    faster = speed(audio, 8000, factor)
    assert faster.dtype == np.float32 and len(faster) == pytest.approx(16000 / factor, abs=2)
    assert pitch(faster, 8000) == pytest.approx(200 * factor, rel=0.02)
    assert factor != 1 or faster is audio


@pytest.mark.parametrize("kind", ["white", "short", "long"])
@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_has_the_strength_it_is_told(kind, snr):
    audio = tone(1.0, 16000)
    noise = {"white": None, "short": generator(1).standard_normal(4000), "long": generator(1).standard_normal(50000)}
    chosen = noise[kind]
    noisy = add_noise(audio, generator(), snr, chosen if chosen is None else chosen.astype(np.float32))
    added = noisy - audio
    assert noisy.dtype == np.float32 and noisy.shape == audio.shape
    assert 10 * np.log10((audio**2).mean() / (added**2).mean()) == pytest.approx(snr, abs=0.01)


def test_silence_and_empty_audio_stay_as_they_are():
    for audio in (np.zeros(100, np.float32), np.zeros(0, np.float32)):
        assert add_noise(audio, generator(), 10.0) is audio
    audio = tone(0.1, 8000)
    assert add_noise(audio, generator(), 10.0, np.zeros(50, np.float32)) is audio
    assert add_noise(audio, generator(), 10.0, np.zeros(0, np.float32)) is audio


def test_masks_stay_within_their_limits_and_leave_the_input_alone():
    features = np.ones((50, 20), np.float32)
    for seed in range(50):
        masked = spec_augment(features, generator(seed), 4, 30, 2, 6, fill=-1.0)
        frames = (masked == -1).all(axis=1)
        channels = (masked == -1).all(axis=0)
        assert frames.sum() <= 10 and channels.sum() <= 12 and masked.dtype == np.float32
        rest = masked[~frames][:, ~channels]
        assert (rest == 1).all() and (features == 1).all()


@pytest.mark.parametrize("shape", [(0, 20), (1, 20), (3, 1)])
def test_short_features_are_masked_too(shape):
    assert spec_augment(np.ones(shape, np.float32), generator(), 2, 30, 2, 30).shape == shape


def test_the_same_seed_gives_the_same():
    audio, features = tone(0.5, 16000), generator(3).standard_normal((100, 80)).astype(np.float32)
    for function in (
        lambda rng: add_noise(audio, rng, 5.0),
        lambda rng: add_noise(audio, rng, 5.0, audio[::-1].copy()),
        lambda rng: spec_augment(features, rng, 2, 20, 2, 20),
    ):
        np.testing.assert_array_equal(function(generator(7)), function(generator(7)))
        assert not np.array_equal(function(generator(7)), function(generator(8)))
