"""Labels of series: classes or targets, told apart, put in order and numbered."""

import contextlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from flame.errors import DataError

USUAL_LABELS = ("label", "labels", "class", "target", "y")
"""Names of columns that are taken for the label's if none is named."""

MISSING = ("", "?", "nan", "NaN", "NA", "N/A", "null", "NULL")
"""What stands for a missing cell in files of text."""

_DIGITS = re.compile(r"(\d+)")
_LARGEST = 2.0**53  # beyond, numbers of a float column are not integers that can be told apart


class LabelSummary(NamedTuple):
    """What is known of the labels of a part without reading them."""

    kind: str
    """
    ``none``; ``names``: codes into ``names``, -1 where missing; ``numbers``: float64, NaN where missing, classes if all
    of them in the source are integral; ``targets``: the same, but never classes.
    """
    names: tuple[str, ...] = ()
    """The classes: declared or found ones of ``names``, the integral ones of ``numbers``."""
    is_integral: bool = False
    """Whether all ``numbers`` are integral."""


NO_LABELS = LabelSummary("none")


def natural_order(names: Iterable[str]) -> list[str]:
    """Distinct names, sorted such that numbers in them count as numbers: ``2`` before ``10``."""
    return sorted(set(names), key=_natural_key)


def summarize(labels: Sequence[str | float | None], declared: Sequence[str] = ()) -> tuple[LabelSummary, np.ndarray]:
    """Tells what kind of labels these are.

    Args:
        labels: As read: strings, numbers, or None where missing.
        declared: All classes that there may be, if the file says so.

    Returns:
        The summary, and the labels as it says.
    """
    if not declared:
        numbers = _as_numbers(labels)
        if numbers is not None:
            return summarize_numbers(numbers), numbers
    texts = [None if label is None else str(label) for label in labels]
    names = natural_order([*declared, *(text for text in texts if text is not None)])
    places = {name: place for place, name in enumerate(names)}
    codes = np.array([-1 if text is None else places[text] for text in texts], np.int32)
    return LabelSummary("names", tuple(names)), codes


def summarize_numbers(numbers: np.ndarray) -> LabelSummary:
    """The summary of numbers whose kind is not declared: float64, NaN where missing."""
    known = numbers[np.isfinite(numbers)]
    is_integral = bool((known == np.round(known)).all() and (np.abs(known) < _LARGEST).all())
    names = tuple(str(int(number)) for number in np.unique(known)) if is_integral else ()
    return LabelSummary("numbers", names, is_integral)


def merge_labels(parts: Sequence[tuple[str, LabelSummary]]) -> list[str] | None:
    """The classes of a source with these parts, each with its name for messages; None if labels are not classes.

    Raises:
        DataError: Some parts have labels and others none, or some have names and others real numbers.
    """
    kinds = {summary.kind for _, summary in parts}
    if kinds == {"none"}:
        return None
    if "none" in kinds:
        lacking = next(name for name, summary in parts if summary.kind == "none")
        raise DataError(f"{lacking} has no labels, while other files of the source do: leave it out, or add them")
    real = [name for name, summary in parts if not _may_be_classes(summary)]
    named = [name for name, summary in parts if summary.kind == "names" and summary.names]
    if real and named:
        raise DataError(f"labels of {named[0]} are names and those of {real[0]} real numbers: use one kind")
    return None if real else natural_order(name for _, summary in parts for name in summary.names)


def codes_of(labels: np.ndarray, summary: LabelSummary, classes: Sequence[str]) -> np.ndarray:
    """Numbers of classes, int32 ``[series]``, -1 where there is none.

    Args:
        labels: Of a part, as its summary says.
        summary: What is known of them.
        classes: Of the whole source.
    """
    places = {name: place for place, name in enumerate(classes)}
    translation = np.array([*(places[name] for name in summary.names), -1], np.int32)
    if summary.kind == "names":
        known = (labels >= 0) & (labels < len(summary.names))
        return translation[np.where(known, labels, -1)]
    known = np.isfinite(labels)
    values = np.unique(labels[known])
    found = np.searchsorted(values, np.where(known, labels, 0)) if len(values) else np.zeros(len(labels), int)
    return translation[np.where(known, found, -1)]


def _may_be_classes(summary: LabelSummary) -> bool:
    return summary.kind == "names" or (summary.kind == "numbers" and summary.is_integral)


def _as_numbers(labels: Sequence[str | float | None]) -> np.ndarray | None:
    """float64 with NaN where missing; None if one is no number."""
    try:
        numbers = np.array([np.nan if label is None else float(label) for label in labels])
    except ValueError:
        return None
    # Long digit strings, such as serial numbers, would become the same float.
    return None if (np.abs(numbers[np.isfinite(numbers)]) >= _LARGEST).any() else numbers


def _natural_key(name: str) -> tuple[int, float, list[tuple[int, int, str]]]:
    with contextlib.suppress(ValueError):
        number = float(name)
        if math.isfinite(number):
            return (0, number, [(0, 0, name)])
    pieces = _DIGITS.split(name)
    return (1, 0.0, [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece])
