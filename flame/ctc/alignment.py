"""When labels are said that are known: the best path that reads as them (Viterbi)."""

import math

import numpy as np

from flame.ctc.greedy import Emission


def align(log_probabilities: np.ndarray, labels: list[int], blank: int) -> list[Emission]:
    """Finds the step at which each label is most certain on the best path.

    Args:
        log_probabilities: [T, V], natural logarithms.
        labels: What is said, without blanks.
        blank: The label that writes nothing.

    Returns:
        An emission for each label; none if no path reads as the labels.
    """
    states = [blank]
    for label in labels:
        states += [label, blank]
    count, steps = len(states), len(log_probabilities)
    wanted = np.array(states)
    # A blank may be left out between two labels that differ.
    skips = np.array([at > 1 and wanted[at] != blank and wanted[at] != wanted[at - 2] for at in range(count)])
    best = np.full(count, -math.inf)
    came = np.zeros((steps, count), np.int64)
    for step, scores in enumerate(log_probabilities[:, wanted]):
        if not step:
            best[:2] = scores[:2]
            continue
        ways = np.stack([best, _shifted(best, 1), np.where(skips, _shifted(best, 2), -math.inf)])
        came[step] = ways.argmax(0)
        best = ways.max(0) + scores
    if not steps or not labels or best[-2:].max() == -math.inf:
        return []
    at = count - 1 if best[-1] >= best[-2] else count - 2
    path = [at]
    for step in range(steps - 1, 0, -1):
        at -= int(came[step, at])
        path.append(at)
    return _peaks(log_probabilities, labels, path[::-1])


def _shifted(values: np.ndarray, by: int) -> np.ndarray:
    return np.concatenate([np.full(by, -math.inf), values[:-by]])[: len(values)]


def _peaks(log_probabilities: np.ndarray, labels: list[int], path: list[int]) -> list[Emission]:
    found: list[Emission | None] = [None] * len(labels)
    for step, state in enumerate(path):
        if state % 2:
            label = labels[state // 2]
            certain = float(np.exp(log_probabilities[step, label]))
            held = found[state // 2]
            if held is None or certain > held.probability:
                found[state // 2] = Emission(label, step, certain)
    return [emission for emission in found if emission is not None]
