"""MNIST and all that comes in its files (Fashion-MNIST, KMNIST): ``train-images-idx3-ubyte`` and so on."""

import functools
from pathlib import Path

from flame.config.corpora import Source
from flame.data.series.arrays import ArrayFile, ArrayPart
from flame.data.series.converted import cache_path
from flame.data.series.files import info_of
from flame.data.series.images import image_view
from flame.data.series.labels import LabelSummary
from flame.data.sources.line_index import decompress
from flame.data.sources.storage import FileInfo
from flame.errors import DataError
from flame.tokenizer.cache import build_once

_PREFIXES = {"train": "train", "test": "t10k"}
_FOLDERS = ("", "raw", "MNIST/raw")
_CLASSES = tuple(map(str, range(10)))
_BYTE = 8  # the code of the type in the header


def is_mnist(folder: Path) -> bool:
    """Whether a folder holds the files."""
    return any(_find(folder, prefix, "images", 3) for prefix in _PREFIXES.values())


def open_mnist(config: Source) -> list[ArrayPart]:
    """Opens a split.

    Raises:
        DataError: A file is missing, damaged or of another kind, or there is no such split.
    """
    folder = Path(config.path).expanduser()
    if config.split not in _PREFIXES:
        raise DataError(f"'{config.path}' has no split '{config.split}': it is train or test")
    prefix = _PREFIXES[config.split]
    paths = [_find(folder, prefix, *what) for what in (("images", 3), ("labels", 1))]
    for path, what in zip(paths, ("images-idx3", "labels-idx1"), strict=True):
        if path is None:
            raise DataError(f"no file {prefix}-{what}-ubyte (or .gz) in '{config.path}': fetch it, or mend the path")
    images, labels = (_idx(info_of(str(path)), axes) for path, axes in zip(paths, (3, 1), strict=True))
    if images.shape[:1] != labels.shape:
        raise DataError(f"{paths[0]} holds {images.shape[0]:,} images, and {paths[1]} {labels.shape[0]:,} labels")
    view = image_view(config.name, 255, config.path)
    summary = LabelSummary("names", _CLASSES)
    # The labels of some relatives (EMNIST letters) do not fit.
    largest = int(labels.open().max(initial=0))
    if largest >= len(_CLASSES):
        summary = LabelSummary("names", tuple(map(str, range(largest + 1))))
    file = info_of(str(paths[0]))
    return [ArrayPart(file, images, labels=labels, summary=summary, view=view, unit="image")]


def _find(folder: Path, prefix: str, what: str, axes: int) -> Path | None:
    names = [f"{prefix}-{what}{joint}idx{axes}-ubyte{suffix}" for suffix in ("", ".gz") for joint in "-."]
    places = [folder / inner / name for inner in _FOLDERS for name in names]
    return next((place for place in places if place.is_file()), None)


def _idx(file: FileInfo, axes: int) -> ArrayFile:
    """Where the bytes of an idx file lie, which has this many axes."""
    plain = Path(file.path)
    if plain.suffix == ".gz":
        plain = build_once(cache_path(file, "idx"), functools.partial(_decompress, file.path))
    start = 4 * (axes + 1)
    with open(plain, "rb") as opened:
        header = opened.read(start)
        size = opened.seek(0, 2)
    if len(header) < start or header[:4] != bytes([0, 0, _BYTE, axes]):
        raise DataError(f"{file.path} does not begin as an idx file of bytes with {axes} axes: fetch it again")
    shape = tuple(int.from_bytes(header[place : place + 4], "big") for place in range(4, start, 4))
    needed = start
    for extent in shape:
        needed = start + (needed - start or 1) * extent
    if size != needed or not all(shape):
        raise DataError(f"{file.path} should have {needed:,} bytes, and has {size:,}: fetch it again")
    return ArrayFile(str(plain), start, "u1", shape)


def _decompress(path: str, target: Path) -> None:
    with open(path, "rb") as stored:
        decompress(path, stored, target)
