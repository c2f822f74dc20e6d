"""The best label of every step, repeats and blanks left out; and when words were said."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Emission(NamedTuple):
    """A label and the step at which a model says it: the one of its run where it is most certain."""

    label: int
    step: int
    probability: float


class Word(NamedTuple):
    """A word with its beginning and end in steps."""

    text: str
    start: int
    stop: int


def emissions(log_probabilities: np.ndarray, blank: int) -> list[Emission]:
    """The labels of the best path through ``log_probabilities`` [T, V], in order."""
    best = log_probabilities.argmax(1)
    values = log_probabilities.max(1)
    borders = np.flatnonzero(np.diff(best)) + 1
    runs = zip(np.split(np.arange(len(best)), borders), np.split(values, borders), strict=True) if len(best) else ()
    return [
        Emission(int(best[steps[0]]), int(steps[scores.argmax()]), float(np.exp(scores.max())))
        for steps, scores in runs
        if best[steps[0]] != blank
    ]


def greedy(log_probabilities: np.ndarray, blank: int) -> list[int]:
    """The labels of the best path through ``log_probabilities`` [T, V]."""
    best = log_probabilities.argmax(1)
    kept = (best != blank) & (np.diff(best, prepend=-1) != 0)
    return best[kept].tolist()


def words(found: Sequence[Emission], pieces: Sequence[str]) -> list[Word]:
    """Words with their times, from the peaks of their labels.

    Args:
        found: Labels with their steps.
        pieces: What each label writes; words are parted by spaces in these.
    """
    said: list[Word] = []
    text, start, stop = "", 0, 0
    for label, step, _ in found:
        piece = pieces[label]
        head, *rest = piece.split(" ")
        if head:
            start = start if text else step
            text, stop = text + head, step
        for part in rest:
            if text:
                said.append(Word(text, start, stop + 1))
            text, start, stop = part, step, step
    if text:
        said.append(Word(text, start, stop + 1))
    return said
