"""Files of text and tables, converted once per machine into arrays in the cache, which any process maps at no cost."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from flame.data.series.arrays import ArrayFile, ArrayPart
from flame.data.series.labels import NO_LABELS, LabelSummary, summarize
from flame.data.series.text_lines import one_line
from flame.data.sources.storage import FileInfo, check_unchanged
from flame.errors import DataError
from flame.tokenizer.cache import build_once, cache_folder

_VERSION = 1  # of what readers make of files: higher when they are changed
_BUFFER = 1 << 20
_WORTH_TELLING = 1 << 26  # bytes; smaller files take seconds

logger = logging.getLogger(__name__)


class SeriesWriter:
    """Takes series one by one, as a reader finds them in a file.

    Args:
        folder: Where to write.
        channels: Values per step, if the file says so; 0 to take that of the first series.
    """

    def __init__(self, folder: Path, channels: int = 0):
        folder.mkdir()
        self.channels = channels
        self.unit = "line"
        """What ``row`` counts."""
        self._folder = folder
        self._file = open(folder / "values.f32", "wb", buffering=_BUFFER)  # noqa: SIM115  (closed by finish)
        self._steps: list[int] = []
        self._rows: list[int] = []
        self._labels: list[str | float | None] = []
        self._faults: dict[int, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, values: np.ndarray, label: str | float | None, row: int) -> None:
        """Adds a series.

        Args:
            values: ``[T, C]``, NaN where missing.
            label: Its class or target; None if it has none.
            row: Its number in the file, from 1.
        """
        if not len(values):
            return self.fault("empty series", "", row)
        self.channels = self.channels or values.shape[1]
        if values.shape[1] != self.channels:
            return self.fault("other number of channels", f"{values.shape[1]}, not {self.channels}", row)
        with np.errstate(over="ignore"):  # told as an infinite value
            self._file.write(np.ascontiguousarray(values, np.float32).tobytes())
        self._append(len(values), label, row)

    def fault(self, reason: str, detail: str, row: int) -> None:
        """Adds a series that cannot be used, and why."""
        self._faults[len(self)] = (reason, detail)
        self._append(0, None, row)

    def finish(self, labels: "str | Sequence[str]") -> None:
        """Writes what there is besides the values.

        Args:
            labels: ``none``, ``targets``, ``found``, or the names of all classes that there may be.
        """
        self._file.close()
        summary, numbers = self._summary(labels)
        for name, array in (("steps", self._steps), ("rows", self._rows), ("labels", numbers)):
            np.save(self._folder / f"{name}.npy", np.asarray(array) if name == "labels" else np.array(array, np.int64))
        (self._folder / "faults.json").write_text(json.dumps(self._faults))
        meta = {"channels": self.channels or 1, "unit": self.unit, "summary": summary, "faults": len(self._faults)}
        (self._folder / "meta.json").write_text(json.dumps(meta))

    def _append(self, steps: int, label: str | float | None, row: int) -> None:
        self._steps.append(steps)
        self._rows.append(row)
        self._labels.append(label)

    def _summary(self, labels: str | Sequence[str]) -> tuple[LabelSummary, np.ndarray]:
        if labels == "none":
            return NO_LABELS, np.empty(0)
        if labels == "targets":
            return LabelSummary("targets"), np.array([np.nan if x is None else float(x) for x in self._labels])
        return summarize(self._labels, () if isinstance(labels, str) else labels)


def converted(file: FileInfo, how: str, read: Callable[[FileInfo, SeriesWriter], None]) -> ArrayPart:
    """The series of a file, converted unless this version of it was before.

    Args:
        file: The file.
        how: The reader and its options, as a key of the cache.
        read: Hands the series of the file to a writer, and finishes it.

    Raises:
        DataError: The file cannot be read, or the cache not be written.
    """

    def build(draft: Path) -> None:
        if file.size >= _WORTH_TELLING:
            logger.info("converting %s into the cache, once", file.path)
        read(file, SeriesWriter(draft))
        check_unchanged(file, os.stat(file.path))

    folder = build_once(cache_path(file, how), build)
    meta = json.loads((folder / "meta.json").read_bytes())
    kind, names, is_integral = meta["summary"]
    steps = npy_file(folder / "steps.npy")
    channels = int(meta["channels"])
    stored = (folder / "values.f32").stat().st_size // (4 * channels)
    return ArrayPart(
        file,
        ArrayFile(str(folder / "values.f32"), 0, "<f4", (stored, channels)),
        steps=steps,
        labels=None if kind == "none" else npy_file(folder / "labels.npy"),
        summary=LabelSummary(kind, tuple(names), is_integral),
        rows=npy_file(folder / "rows.npy"),
        unit=meta["unit"],
        faults=folder / "faults.json" if meta["faults"] else None,
        usable=steps.shape[0] - meta["faults"],
    )


def cache_path(file: FileInfo, how: str) -> Path:
    """Where the cache keeps what was made of this version of a file in this way."""
    identity = "/".join([os.path.abspath(file.path), str(file.size), file.stamp, how, str(_VERSION)])
    return cache_folder() / "series" / hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()


def npy_file(path: Path, known_as: str = "") -> ArrayFile:
    """Where the array of a ``.npy`` file lies.

    Args:
        path: The file.
        known_as: What messages call it.

    Raises:
        DataError: It is no such file, or too short.
    """
    with open(path, "rb") as file:
        found = array_at(file, str(path), known_as or str(path))
        needed = found.offset + int(np.prod(found.shape)) * found.dtype.itemsize
        if os.fstat(file.fileno()).st_size < needed:
            raise DataError(f"{known_as or path} is cut off: it should have {needed:,} bytes; fetch it again")
        return found


def array_at(file, path: str, known_as: str) -> ArrayFile:
    """Where the array lies whose ``.npy`` header begins at the position of an open file.

    Raises:
        DataError: There is no such header, or the array holds Python objects.
    """
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = reader(file)
    except ValueError as error:
        raise DataError(
            f"{known_as} is no array of numpy ({one_line(error)}): save it anew with numpy.savez"
        ) from error
    if dtype.hasobject:
        raise DataError(
            f"{known_as} holds Python objects, which are never unpickled: save all steps as one array 'values' "
            "[steps, channels], and 'lengths' [series]"
        )
    return ArrayFile(path, file.tell(), dtype, shape, "F" if is_fortran else "C")
