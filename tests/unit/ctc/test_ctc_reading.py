"""Greedy reading, when words are said, and the best path through labels that are known."""

import itertools
import math

import numpy as np
import pytest
from ctc_by_hand import BLANK, paths, random_scores, said

from flame.ctc.alignment import align
from flame.ctc.greedy import Emission, Word, emissions, greedy, words

PIECES = ["", "a", "b", " "]


def certain(path: list[int], labels: int = 4, probability: float = 0.9) -> np.ndarray:
    """Logarithms of probabilities of which a path is the best."""
    shares = np.full((len(path), labels), (1 - probability) / (labels - 1))
    shares[np.arange(len(path)), path] = probability
    return np.log(shares)


@pytest.mark.parametrize(
    "path, read",
    [
        ([0, 1, 1, 0, 1, 2, 2, 3], [1, 1, 2, 3]),
        ([1, 1, 1], [1]),
        ([0, 0], []),
        ([2], [2]),
        ([1, 2, 1, 0], [1, 2, 1]),
        ([], []),
    ],
)
def test_repeats_are_one_label_unless_a_blank_parts_them(path: list[int], read: list[int]) -> None:
    scores = certain(path)
    assert greedy(scores, BLANK) == read
    assert [emission.label for emission in emissions(scores, BLANK)] == read


def test_another_label_may_be_the_blank() -> None:
    assert greedy(certain([3, 0, 0, 3, 0, 1]), blank=3) == [0, 0, 1]
    assert [one.label for one in emissions(certain([3, 0, 0, 3, 0, 1]), blank=3)] == [0, 0, 1]


def test_greedy_is_the_best_path() -> None:
    scores = random_scores(5, 4, seed=3)
    best, _ = max(paths(scores), key=lambda item: item[1])
    assert tuple(greedy(scores, BLANK)) == said(best)


def test_a_label_is_said_where_it_is_most_certain() -> None:
    scores = np.concatenate([certain([0, 1, 1], probability=0.7), certain([1], probability=0.95), certain([0, 2])])
    first, second = emissions(scores, BLANK)
    assert (first.label, first.step) == (1, 3) and first.probability == pytest.approx(0.95)
    assert (second.label, second.step) == (2, 5)


def at(*found: tuple[int, int]) -> list[Emission]:
    return [Emission(label, step, 1.0) for label, step in found]


def test_words_lie_between_spaces() -> None:
    found = at((3, 0), (1, 2), (2, 4), (3, 6), (3, 7), (1, 9))
    assert words(found, PIECES) == [Word("ab", 2, 5), Word("a", 9, 10)]
    assert words([], PIECES) == [] and words(at((3, 1)), PIECES) == []


def test_pieces_that_begin_with_a_space_begin_a_word() -> None:
    pieces = ["", " a", "b", " ", "c d"]
    assert words(at((1, 1), (2, 3), (1, 5)), pieces) == [Word("ab", 1, 4), Word("a", 5, 6)]
    assert words(at((4, 2), (2, 4)), pieces) == [Word("c", 2, 3), Word("db", 2, 5)]
    assert words(at((3, 1), (1, 2)), pieces) == [Word("a", 2, 3)]


@pytest.mark.parametrize("labels", [[1], [1, 2], [1, 1], [2, 1, 2], [3, 3, 1]])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_alignment_is_the_best_path_that_reads_as_the_labels(labels: list[int], seed: int) -> None:
    scores = random_scores(5, 4, seed)
    best, _ = max((item for item in paths(scores) if said(item[0]) == tuple(labels)), key=lambda item: item[1])
    wanted = []
    for label, run in itertools.groupby(enumerate(best), key=lambda item: item[1]):
        if label != BLANK:
            steps = [step for step, _ in run]
            peak = max(steps, key=lambda step: scores[step, label])
            wanted.append((label, peak, pytest.approx(math.exp(scores[peak, label]))))
    assert [tuple(one) for one in align(scores, labels, BLANK)] == wanted


def test_labels_that_no_path_reads_as_have_no_times() -> None:
    scores = random_scores(2, 4, seed=0)
    assert align(scores, [1, 1], BLANK) == [], "a blank between the two needs a third step"
    assert align(scores, [1, 2, 3], BLANK) == []
    assert align(scores, [], BLANK) == []
    assert align(scores[:0], [1], BLANK) == []
    assert align(np.array([[0.0, -math.inf], [-math.inf, 0.0]]), [1, 1], BLANK) == []
    assert align(np.array([[0.0, -math.inf], [0.0, -math.inf]]), [1], BLANK) == []
