"""CIFAR-10 from its files: the binary version, the python version (pickles), or either's archive as downloaded."""

import functools
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flame.config.corpora import Source
from flame.data.series.arrays import ArrayFile, ArrayPart
from flame.data.series.batch_pickles import NoBatchError, load_batch
from flame.data.series.converted import cache_path
from flame.data.series.files import info_of
from flame.data.series.images import ImageView, image_view
from flame.data.series.labels import LabelSummary
from flame.data.sources.storage import FileInfo
from flame.errors import DataError
from flame.tokenizer.cache import build_once

logger = logging.getLogger(__name__)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = {"train": re.compile(r"data_batch_\d+(\.bin)?"), "test": re.compile(r"test_batch(\.bin)?")}
_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_RECORD = np.dtype([("label", "u1"), ("pixels", "u1", (3, 32, 32))])
_TRAIN_BATCHES = 5


def is_cifar10(path: Path) -> bool:
    """Whether a path is a folder of its batches, or its archive."""
    if path.is_file():
        return path.name.startswith("cifar-10") and path.name.endswith(_ARCHIVES)
    return any(_batches(path, split) for split in _BATCHES)


def open_cifar10(config: Source) -> list[ArrayPart]:
    """Opens a split.

    Raises:
        DataError: Files are missing or damaged, or there is no such split.
    """
    path = Path(config.path).expanduser()
    if config.split not in _BATCHES:
        raise DataError(f"'{config.path}' has no split '{config.split}': it is train or test")
    view = image_view(config.name, 255, config.path)
    if path.is_file():
        file = info_of(str(path))
        plain = build_once(cache_path(file, f"cifar10 {config.split}"), functools.partial(_unpack, path, config.split))
        found = [(file, plain)]
    else:
        batches = _batches(path, config.split)
        if not batches:
            raise DataError(
                f"no batches of split '{config.split}' in '{config.path}': fetch CIFAR-10, or mend the path"
            )
        if config.split == "train" and len(batches) != _TRAIN_BATCHES:
            logger.warning("'%s' holds %d batches of CIFAR-10, not %d", path, len(batches), _TRAIN_BATCHES)
        found = [_plain(info_of(str(batch))) for batch in batches]
    return [_part(file, plain, view) for file, plain in found]


def _part(file: FileInfo, plain: Path, view: ImageView) -> ArrayPart:
    size = plain.stat().st_size
    records, rest = divmod(size, _RECORD.itemsize)
    if rest or not records:
        raise DataError(
            f"{file.path} is cut off within the record that begins at byte {size - rest:,} (records have "
            f"{_RECORD.itemsize:,} bytes): fetch it again"
        )
    stored = ArrayFile(str(plain), 0, _RECORD, (records,))
    return ArrayPart(
        file,
        stored._replace(field="pixels"),
        labels=stored._replace(field="label"),
        summary=LabelSummary("names", CLASSES),
        view=view,
        unit="image",
    )


def _batches(folder: Path, split: str) -> list[Path]:
    for inner in _FOLDERS:
        place = folder / inner
        names = os.listdir(place) if place.is_dir() else []
        found = [name for name in names if _BATCHES[split].fullmatch(name)]
        binary = [name for name in found if name.endswith(".bin")]
        if found:
            return [place / name for name in sorted(binary or found)]
    return []


def _plain(file: FileInfo) -> tuple[FileInfo, Path]:
    """A batch, and the file of records that it is or that is made of it."""
    if file.path.endswith(".bin"):
        return file, Path(file.path)

    def build(target: Path) -> None:
        with open(file.path, "rb") as stored, open(target, "wb") as records:
            _to_records(file.path, stored, records.write)

    return file, build_once(cache_path(file, "cifar10"), build)


def _unpack(archive: Path, split: str, target: Path) -> None:
    """Writes the records of a split of an archive."""
    try:
        with tarfile.open(archive) as packed, open(target, "wb") as records:
            members = [
                member for member in packed.getmembers() if _BATCHES[split].fullmatch(member.name.rpartition("/")[2])
            ]
            if not members:
                raise DataError(f"{archive} holds no batches of split '{split}': is it CIFAR-10's?")
            for member in sorted(members, key=lambda member: member.name):
                stored = packed.extractfile(member)
                if stored is None:
                    raise DataError(f"{archive}: '{member.name}' is no file: fetch the archive again")
                where = f"{archive}, {member.name}"
                if member.name.endswith(".bin"):
                    records.write(stored.read())
                else:
                    _to_records(where, stored, records.write)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive} is damaged or incomplete ({error}): fetch it again") from error


def _to_records(where: str, stored: BinaryIO | object, write: Callable[[bytes], object]) -> None:
    """Writes a pickled batch as records."""
    try:
        pixels, labels = load_batch(stored)
    except NoBatchError as error:
        raise DataError(f"{where} is no batch of CIFAR-10, or damaged ({error}): fetch it again") from error
    records = np.empty(len(labels), _RECORD)
    records["label"], records["pixels"] = labels, pixels.reshape(-1, 3, 32, 32)
    write(records.tobytes())
