"""Series in ``.npz`` files: ``X`` [N, T] or [N, T, C], or ``values`` [steps, C] with ``lengths`` [N]; and ``y`` [N]."""

import functools
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flame.config.corpora import Source
from flame.data.series.arrays import ArrayFile, ArrayPart
from flame.data.series.converted import array_at, cache_path, npy_file
from flame.data.series.labels import NO_LABELS, LabelSummary, summarize, summarize_numbers
from flame.data.series.text_lines import one_line
from flame.data.sources.storage import FileInfo, once_per_version
from flame.errors import DataError, closest
from flame.tokenizer.cache import build_once

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)


class _Names(NamedTuple):
    """Which array of a file is what."""

    values: str
    lengths: str
    """Empty where all series are equally long."""
    labels: str
    """Empty for none."""


def open_npz(file: FileInfo, config: Source) -> ArrayPart:
    """Opens a ``.npz`` file; arrays that are stored uncompressed are mapped where they are.

    Args:
        file: The file.
        config: ``value_columns`` may name the array of values, ``label_column`` that of labels; ``split`` chooses
            among ``X_train``, ``X_test``, ... where there are such.

    Raises:
        DataError: It is damaged, or the arrays in it are not those.
    """
    try:
        with zipfile.ZipFile(file.path) as archive:
            stems = [name.removesuffix(".npy") for name in archive.namelist()]
            names = _choose(file.path, stems, config)
            once_per_version("npz", file, functools.partial(_check_sums, archive))
            found = {name: _array(file, archive, name) for name in names if name}
    except _DAMAGE as error:
        if isinstance(error, DataError):
            raise
        said = one_line(error)
        raise DataError(f"{file.path} is not a complete .npz file ({said}): fetch it or save it again") from error
    values = _checked_values(file.path, names, found)
    count = found[names.lengths].shape[0] if names.lengths else values.shape[0]
    summary, labels = _labels(file, names.labels, found[names.labels], count) if names.labels else (NO_LABELS, None)
    return ArrayPart(
        file,
        values,
        steps=found[names.lengths] if names.lengths else None,
        labels=labels,
        summary=summary,
    )


def _choose(path: str, names: Sequence[str], config: Source) -> _Names:
    if len(config.value_columns) > 1:
        raise DataError(f"{path}: value_columns names {len(config.value_columns)} arrays: name the one of all values")
    for key, name in (("value_columns", "".join(config.value_columns)), ("label_column", config.label_column)):
        if name and name not in names:
            raise DataError(f"{path} has no array '{name}', only {', '.join(names)}: set {key}.{closest(name, names)}")
    split = config.split
    usual = [f"X_{split}", f"x_{split}"] + (["X", "x", "values"] if split == "train" else [])
    values = next(iter(config.value_columns or [name for name in usual if name in names]), "")
    if not values:
        told = "has no array X or values" if split == "train" else f"has no array X_{split} for split = '{split}'"
        raise DataError(f'{path} {told}, only {", ".join(names)}: set value_columns = ["NAME"]')
    if config.value_columns and split != "train":
        raise DataError(f"{path}: split = '{split}' has no effect where value_columns names the array: leave it out")
    usual = [f"y_{split}"] if values in usual[:2] else ["y", "label", "labels"]
    labels = config.label_column or next((name for name in usual if name in names), "")
    is_ragged = "lengths" in names and (values == "values" or bool(config.value_columns))
    return _Names(values, "lengths" if is_ragged else "", labels)


def _array(file: FileInfo, archive: zipfile.ZipFile, name: str) -> ArrayFile:
    member = next(info for info in archive.infolist() if info.filename.removesuffix(".npy") == name)
    known_as = f"{file.path}, array '{name}'"
    if member.compress_type != zipfile.ZIP_STORED:
        plain = build_once(cache_path(file, f"npz {name}"), functools.partial(_extract, archive, member))
        return npy_file(plain, known_as)
    with open(file.path, "rb") as opened:
        opened.seek(member.header_offset)
        header = opened.read(30)
        opened.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
        begin = opened.tell()
        found = array_at(opened, file.path, known_as)
        if found.offset - begin + int(np.prod(found.shape)) * found.dtype.itemsize > member.file_size:
            raise DataError(f"{known_as} is cut off: save it anew")
        return found


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    with archive.open(member) as packed, open(target, "wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)


def _check_sums(archive: zipfile.ZipFile) -> None:
    bad = archive.testzip()
    if bad is not None:
        raise DataError(f"{archive.filename}, array '{bad.removesuffix('.npy')}' is damaged (its checksum differs)")


def _checked_values(path: str, names: _Names, found: dict[str, ArrayFile]) -> ArrayFile:
    values = found[names.values]
    where = f"{path}, array '{names.values}'"
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where} holds {values.dtype}, not numbers: save the values of the series")
    shapes = ("[steps]", "[steps, channels]") if names.lengths else ("[series, steps]", "[series, steps, channels]")
    if len(values.shape) not in ((1, 2) if names.lengths else (2, 3)):
        raise DataError(f"{where} has the shape {list(values.shape)}: it should be {shapes[0]} or {shapes[1]}")
    if names.lengths:
        lengths = found[names.lengths].open()
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths.astype(np.int64) < 0).any():
            raise DataError(f"{path}, array 'lengths' should be of whole numbers, one per series")
        if int(lengths.sum(dtype=np.int64)) != values.shape[0]:
            raise DataError(
                f"{path}: lengths add up to {int(lengths.sum()):,}, but '{names.values}' has {values.shape[0]:,} steps"
            )
    elif not values.shape[1]:
        raise DataError(f"{where} has the shape {list(values.shape)}: its series have no steps")
    return values


def _labels(file: FileInfo, name: str, stored: ArrayFile, count: int) -> tuple[LabelSummary, ArrayFile]:
    where = f"{file.path}, array '{name}'"
    shape = stored.shape[:1] if len(stored.shape) == 2 and stored.shape[1] == 1 else stored.shape
    if shape != (count,):
        raise DataError(f"{where} has the shape {list(stored.shape)}, for {count:,} series: it should be [{count}]")
    if stored.dtype.kind in "iuf":
        flat = stored._replace(shape=shape)
        return summarize_numbers(flat.open().astype(np.float64)), flat
    if stored.dtype.kind not in "bUS":
        raise DataError(f"{where} holds {stored.dtype}: labels are numbers or strings")
    texts = stored.open().reshape(-1)
    cells = [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in texts.tolist()]
    summary, labels = summarize([cell.lower() if stored.dtype.kind == "b" else cell or None for cell in cells])
    target = cache_path(file, f"npz labels {name}")

    def save(draft: Path) -> None:
        with open(draft, "wb") as opened:
            np.save(opened, labels)

    return summary, npy_file(build_once(target, save))
