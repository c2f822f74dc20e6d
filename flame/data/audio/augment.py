"""Augmentation of recordings and their features: pure functions of their input and a ``numpy`` random generator."""

import numpy as np

from flame.data.audio.decoding import resample

_LARGEST_RATIO_TERM = 1000  # speed factors are taken to three digits


def speed(audio: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """Plays a recording faster or slower, which changes its pitch too.

    Args:
        audio: float32 ``[samples]``.
        rate: Samples per second; those of the result are as many.
        factor: 1.1 makes it a tenth faster; taken to three digits.

    Returns:
        float32 ``[about samples / factor]``.
    """
    return resample(audio, round(rate * round(factor * _LARGEST_RATIO_TERM) / _LARGEST_RATIO_TERM), rate)


def add_noise(
    audio: np.ndarray, rng: np.random.Generator, snr_db: float, noise: np.ndarray | None = None
) -> np.ndarray:
    """Adds noise of a given strength.

    Args:
        audio: float32 ``[samples]``.
        rng: Draws white noise, or the place in ``noise`` to begin with.
        snr_db: Decibels by which the recording's mean power is above the noise's; silence stays as it is.
        noise: float32 ``[any]`` of the same rate, repeated if it is shorter; None for white noise.

    Returns:
        float32 ``[samples]``; the sum may go beyond -1 ... 1.
    """
    power = float(np.mean(np.square(audio, dtype=np.float64))) if len(audio) else 0.0
    if noise is None:
        chosen = rng.standard_normal(len(audio), dtype=np.float32)
    elif len(noise):
        start = int(rng.integers(len(noise)))
        chosen = np.resize(np.roll(noise, -start), len(audio)) if start or len(noise) != len(audio) else noise
    else:
        return audio
    noise_power = float(np.mean(np.square(chosen, dtype=np.float64))) if len(chosen) else 0.0
    if not power or not noise_power:
        return audio
    return audio + chosen * np.float32(np.sqrt(power / noise_power / 10 ** (snr_db / 10)))


def spec_augment(
    features: np.ndarray,
    rng: np.random.Generator,
    time_masks: int,
    time_width: int,
    freq_masks: int,
    freq_width: int,
    fill: float = 0.0,
    time_share: float = 0.2,
) -> np.ndarray:
    """Masks stretches of time and bands of frequency (SpecAugment, without warping).

    Args:
        features: ``[T, F]``.
        rng: Draws widths, uniform from 0 to the largest, and places.
        time_masks: Number of stretches.
        time_width: Most frames of a stretch.
        freq_masks: Number of bands.
        freq_width: Most channels of a band.
        fill: What masked places become; 0 is the mean of normalised features.
        time_share: Most of T that all stretches together may take.

    Returns:
        A masked copy.
    """
    masked = features.copy()
    frames, channels = features.shape
    left = int(time_share * frames)  # frames that may still be masked
    for _ in range(time_masks):
        width = int(rng.integers(min(time_width, left) + 1))
        start = int(rng.integers(frames - width + 1))
        masked[start : start + width] = fill
        left -= width
    for _ in range(freq_masks):
        width = int(rng.integers(min(freq_width, channels) + 1))
        start = int(rng.integers(channels - width + 1))
        masked[:, start : start + width] = fill
    return masked
