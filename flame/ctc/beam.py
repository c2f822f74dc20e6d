"""Prefix beam search (Hannun et al. 2014, https://arxiv.org/abs/1408.2873), with a word language model if there is one.

The probability of a text is the sum over all paths that read as it; a path is a label or a blank for every step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flame.ctc.ngram import NgramModel

_NEVER = -math.inf


@dataclass(frozen=True)
class BeamOptions:
    """How far beam search looks.

    Attributes:
        width: Prefixes that are kept.
        least: Labels of a step below this natural logarithm of a probability are not followed.
        model: A language model of words, or None.
        weight: What the logarithm of its probabilities counts.
        bonus: Added for every word, against the model's preference for few.
    """

    width: int = 16
    least: float = -12.0
    model: NgramModel | None = None
    weight: float = 0.5
    bonus: float = 0.0


class _Prefix:
    """A text so far: logarithms of the probability of its paths that end in a blank, and that do not."""

    __slots__ = ("blank", "label", "language", "open_word", "said")

    def __init__(self, language: float, said: tuple[str, ...], open_word: str):
        self.blank, self.label = _NEVER, _NEVER
        self.language, self.said, self.open_word = language, said, open_word

    @property
    def total(self) -> float:
        return _add(self.blank, self.label)

    @property
    def rank(self) -> float:
        return self.total + self.language


def beam_search(
    log_probabilities: np.ndarray, blank: int, pieces: Sequence[str], options: BeamOptions
) -> tuple[list[int], float]:
    """Finds the labels of the most probable text.

    Args:
        log_probabilities: [T, V], natural logarithms.
        blank: The label that writes nothing.
        pieces: What each label writes; words are parted by spaces in these.
        options: How far to look, and the language model.

    Returns:
        The labels, and the natural logarithm of their probability (with the language model's share).
    """
    beams: dict[tuple[int, ...], _Prefix] = {(): _Prefix(0.0, ("<s>",), "")}
    beams[()].blank = 0.0
    for step in log_probabilities:
        likely = [label for label in np.flatnonzero(step > options.least).tolist() if label != blank]
        grown: dict[tuple[int, ...], _Prefix] = {}
        for labels, prefix in beams.items():
            same = _kept(grown, labels, prefix)
            same.blank = _add(same.blank, prefix.total + float(step[blank]))
            for label in likely:
                score = float(step[label])
                repeats = bool(labels) and labels[-1] == label
                if repeats:
                    same.label = _add(same.label, prefix.label + score)
                longer = grown.get((*labels, label))
                if longer is None:
                    longer = grown[(*labels, label)] = _lengthened(prefix, pieces[label], options)
                longer.label = _add(longer.label, (prefix.blank if repeats else prefix.total) + score)
        beams = dict(sorted(grown.items(), key=lambda item: -item[1].rank)[: options.width])
    ended = {labels: prefix.total + _ended(prefix, options) for labels, prefix in beams.items()}
    best = max(ended, key=lambda labels: ended[labels])
    return list(best), ended[best]


def _kept(grown: dict[tuple[int, ...], _Prefix], labels: tuple[int, ...], prefix: _Prefix) -> _Prefix:
    if labels not in grown:
        grown[labels] = _Prefix(prefix.language, prefix.said, prefix.open_word)
    return grown[labels]


def _lengthened(prefix: _Prefix, piece: str, options: BeamOptions) -> _Prefix:
    """The prefix with a piece behind it, as the language model sees it."""
    language, said, word = prefix.language, prefix.said, prefix.open_word
    head, *rest = piece.split(" ")
    word += head
    for part in rest:
        if word:
            language += _worth(said, word, options)
            said = (*said, word)[-8:]
        word = part
    return _Prefix(language, said, word)


def _ended(prefix: _Prefix, options: BeamOptions) -> float:
    """The language model's share of a text that ends here."""
    language, said = prefix.language, prefix.said
    if prefix.open_word:
        language += _worth(said, prefix.open_word, options)
        said = (*said, prefix.open_word)
    return language if options.model is None else language + options.weight * options.model.score(said, "</s>")


def _worth(said: tuple[str, ...], word: str, options: BeamOptions) -> float:
    if options.model is None:
        return options.bonus
    return options.weight * options.model.score(said, word) + options.bonus


def _add(first: float, second: float) -> float:
    """The logarithm of a sum, from logarithms."""
    if first < second:
        first, second = second, first
    return first if second == _NEVER else first + math.log1p(math.exp(second - first))
