"""CTC as its definition has it: every path written out."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

BLANK = 0


def random_scores(steps: int, labels: int, seed: int, sharpness: float = 1.5) -> np.ndarray:
    """Logarithms of probabilities, float64 [steps, labels]."""
    logits = sharpness * np.random.default_rng(seed).standard_normal((steps, labels))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def said(path: tuple[int, ...]) -> tuple[int, ...]:
    """What a path reads as."""
    return tuple(label for label, _ in itertools.groupby(path) if label != BLANK)


def paths(scores: np.ndarray) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every path with the logarithm of its probability."""
    steps, labels = scores.shape
    for path in itertools.product(range(labels), repeat=steps):
        yield path, float(sum(scores[step, label] for step, label in enumerate(path)))


def probabilities(scores: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of every text."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path, score in paths(scores):
        found[said(path)] += math.exp(score)
    return found
