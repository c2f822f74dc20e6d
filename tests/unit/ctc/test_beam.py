"""Beam search finds the most probable text, with or without a language model."""

import math

import numpy as np
import pytest
from ctc_by_hand import BLANK, probabilities, random_scores

from flame.ctc.beam import BeamOptions, beam_search
from flame.ctc.greedy import greedy
from flame.ctc.ngram import NgramModel

PIECES = ["", "a", "b", " "]
EVERYTHING = BeamOptions(width=10_000, least=-math.inf)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_wide_beam_finds_the_most_probable_text(steps: int, seed: int) -> None:
    scores = random_scores(steps, 4, seed, sharpness=0.7)
    found, score = beam_search(scores, BLANK, PIECES, EVERYTHING)
    everything = probabilities(scores)
    best = max(everything, key=lambda text: everything[text])
    assert tuple(found) == best
    assert math.exp(score) == pytest.approx(everything[best])


def test_the_best_text_need_not_be_the_best_path() -> None:
    # Blank twice is the best path, of 0.36; "a" has three paths, of 0.24 + 0.24 + 0.16.
    scores = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))
    assert greedy(scores, BLANK) == []
    found, score = beam_search(scores, BLANK, ["", "a"], BeamOptions())
    assert found == [1] and math.exp(score) == pytest.approx(0.64)


def test_a_beam_of_one_still_reads() -> None:
    scores = np.log(np.array([[0.05, 0.9, 0.05], [0.9, 0.05, 0.05], [0.05, 0.05, 0.9]]))
    assert beam_search(scores, BLANK, PIECES[:3], BeamOptions(width=1))[0] == [1, 2]


def test_nothing_heard_is_nothing_said() -> None:
    assert beam_search(np.zeros((0, 4)), BLANK, PIECES, BeamOptions()) == ([], 0.0)
    assert beam_search(random_scores(0, 4, 0), BLANK, PIECES, BeamOptions(bonus=3.0))[0] == []


def test_repeats_need_a_blank_between() -> None:
    scores = np.log(np.array([[0.02, 0.98], [0.98, 0.02], [0.02, 0.98]]))
    assert beam_search(scores, BLANK, ["", "a"], BeamOptions())[0] == [1, 1]
    assert beam_search(scores[[0, 2]], BLANK, ["", "a"], BeamOptions())[0] == [1]


def unigrams(**shares: float) -> NgramModel:
    names = {"end": "</s>", "start": "<s>", "unknown": "<unk>"}
    return NgramModel(1, {(names.get(word, word),): (math.log(share), 0.0) for word, share in shares.items()})


@pytest.mark.parametrize("weight, bonus", [(1.0, 0.0), (0.5, 0.3), (2.0, -1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_a_language_model_counts_by_its_weight(weight: float, bonus: float, seed: int) -> None:
    model = unigrams(a=0.2, b=0.1, ab=0.3, end=0.3, unknown=0.05)
    scores = random_scores(4, 4, seed, sharpness=0.7)
    worth = {}
    for text, share in probabilities(scores).items():
        said = "".join(PIECES[label] for label in text).split()
        words = sum(weight * model.score((), word) + bonus for word in said)
        worth[text] = math.log(share) + words + weight * model.score((), "</s>")
    found, score = beam_search(scores, BLANK, PIECES, BeamOptions(10_000, -math.inf, model, weight, bonus))
    best = max(worth, key=lambda text: worth[text])
    assert tuple(found) == best and score == pytest.approx(worth[best])


def test_a_language_model_changes_what_is_understood() -> None:
    # "a" is heard with 0.55, "b" with 0.45; the model holds "b" for nine times as probable.
    scores = np.log(np.array([[1e-6, 0.55, 0.45, 1e-6]]))
    assert beam_search(scores, BLANK, PIECES, BeamOptions())[0] == [1]
    model = unigrams(a=0.05, b=0.45, end=0.5)
    found, score = beam_search(scores, BLANK, PIECES, BeamOptions(model=model, weight=1.0))
    assert found == [2] and score == pytest.approx(math.log(0.45 * 0.45 * 0.5))
    assert beam_search(scores, BLANK, PIECES, BeamOptions(model=model, weight=0.05))[0] == [1]


def test_words_are_judged_by_the_words_before() -> None:
    bigrams = NgramModel(
        2,
        {
            ("<s>",): (math.log(0.1), 0.0),
            ("</s>",): (math.log(0.2), 0.0),
            ("a",): (math.log(0.35), 0.0),
            ("b",): (math.log(0.35), 0.0),
            ("a", "b"): (math.log(0.9), 0.0),
            ("a", "a"): (math.log(0.01), 0.0),
        },
    )
    # "a", a space, and then "a" or "b".
    scores = np.log(np.array([[0.01, 0.97, 0.01, 0.01], [0.01, 0.01, 0.01, 0.97], [0.01, 0.6, 0.38, 0.01]]))
    assert beam_search(scores, BLANK, PIECES, BeamOptions(bonus=0.0))[0] == [1, 3, 1]
    assert beam_search(scores, BLANK, PIECES, BeamOptions(model=bigrams, weight=1.0))[0] == [1, 3, 2]


def test_a_bonus_favours_words() -> None:
    # "a b" and "ab", the second a little more probable.
    scores = np.log(np.array([[0.01, 0.97, 0.01, 0.01], [0.5, 0.05, 0.05, 0.4], [0.01, 0.01, 0.97, 0.01]]))
    assert beam_search(scores, BLANK, PIECES, BeamOptions())[0] == [1, 2]
    assert beam_search(scores, BLANK, PIECES, BeamOptions(bonus=1.0))[0] == [1, 3, 2]
