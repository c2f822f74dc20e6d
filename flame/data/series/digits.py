"""Handwritten digits that ship with scikit-learn: 1,797 images of 8 x 8, real data without any download."""

from pathlib import Path

import numpy as np

from flame.config.corpora import Source
from flame.data.series.arrays import ArrayPart
from flame.data.series.converted import cache_path, npy_file
from flame.data.series.images import image_view
from flame.data.series.labels import LabelSummary
from flame.data.sources.storage import FileInfo
from flame.errors import DataError, need
from flame.tokenizer.cache import build_once

DIGITS = "builtin:sklearn-digits"
_FULL = 16  # the darkest pixel
_EVERY = 5
_SPLITS = ("train", "test")


def open_digits(config: Source) -> list[ArrayPart]:
    """Opens a split: every fifth image of each digit, in the order of scikit-learn, is for the test.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: There is no such split or view.
    """
    if config.split not in _SPLITS:
        raise DataError(f"'{config.path}' has no split '{config.split}': it is one of {', '.join(_SPLITS)}")
    view = image_view(config.name, _FULL, config.path, ("rows", "pixels"))
    need("series", "sklearn")
    from sklearn import __version__ as version

    file = FileInfo(DIGITS, 0, "")
    folder = build_once(cache_path(file, f"{version} {_EVERY}"), _build)
    images, labels = (npy_file(folder / f"{config.split}_{what}.npy") for what in ("images", "labels"))
    summary = LabelSummary("names", tuple(map(str, range(10))))
    return [ArrayPart(file, images, labels=labels, summary=summary, view=view, unit=f"{config.split} image")]


def test_images(labels: np.ndarray) -> np.ndarray:
    """Which images are for the test: bool ``[images]``, of the class of each."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[_EVERY - 1 :: _EVERY]] = True
    return chosen


def _build(folder: Path) -> None:
    from sklearn.datasets import load_digits

    folder.mkdir()
    digits = load_digits()
    images, labels = np.asarray(digits.images, np.uint8), np.asarray(digits.target, np.uint8)  # pyright: ignore
    chosen = test_images(labels)
    for split, rows in zip(_SPLITS, (~chosen, chosen), strict=True):
        np.save(folder / f"{split}_images.npy", images[rows])
        np.save(folder / f"{split}_labels.npy", labels[rows])
