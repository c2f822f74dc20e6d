"""Arrays in files, mapped into memory by every process for itself, and the part of a source that is made of them."""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from flame.data.series.labels import NO_LABELS, LabelSummary
from flame.data.series.source import Fault
from flame.data.sources.storage import FileInfo, check_unchanged
from flame.errors import DataError


class ArrayFile(NamedTuple):
    """Where an array lies in a file, uncompressed."""

    path: str
    offset: int
    dtype: Any
    shape: tuple[int, ...]
    order: Any = "C"
    field: str = ""
    """The field of a structured dtype that is meant; empty for the whole."""

    @property
    def example(self) -> tuple[int, ...]:
        """Shape of what lies under one index."""
        return self.shape[1:] + (self.dtype[self.field].shape if self.field else ())

    def open(self) -> np.ndarray:
        """Maps it into memory.

        Raises:
            DataError: The file is not there any more.
        """
        if not int(np.prod(self.shape)):
            return np.empty(self.shape, self.dtype)
        try:
            mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)
        except (OSError, ValueError) as error:
            raise _lost(self.path, error) from error
        # A plain array: indexing a memmap costs ten times as much.
        plain = mapped.view(np.ndarray)
        return plain[self.field] if self.field else plain


class View(Protocol):
    """How a stored example becomes values."""

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """float32 ``[T, C]`` of one stored example."""
        ...

    def length(self, shape: tuple[int, ...]) -> int:
        """Steps of an example stored with this shape."""
        ...

    def channels(self, shape: tuple[int, ...]) -> int:
        """Channels of an example stored with this shape."""
        ...


class Plain:
    """Stored ``[T]`` or ``[T, C]``."""

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """float32 ``[T, C]`` of one stored example."""
        with np.errstate(over="ignore"):  # told as an infinite value
            return (stored if stored.ndim > 1 else stored[:, None]).astype(np.float32)

    def length(self, shape: tuple[int, ...]) -> int:
        """Steps of an example stored with this shape."""
        return shape[0]

    def channels(self, shape: tuple[int, ...]) -> int:
        """Channels of an example stored with this shape."""
        return shape[1] if len(shape) > 1 else 1


class ArrayPart:
    """Series that are slices of one array.

    Args:
        file: The file they come from, as it was when the source was opened.
        values: ``[series, ...]``, or ``[steps]`` or ``[steps, C]`` of one series after the other.
        steps: Steps of every series, int64 ``[series]``, in the latter case.
        labels: As ``summary`` says, ``[series]``; None if there are none.
        summary: What is known of them.
        view: How a slice of ``values`` becomes values.
        rows: Number of every series in its file, int64 ``[series]``, from 1; None if they are in order.
        unit: What ``rows`` count: ``line``, ``row``, ``image``.
        faults: A JSON object of reason and detail by number of the series.
        usable: Series without a fault.
    """

    def __init__(
        self,
        file: FileInfo,
        values: ArrayFile,
        *,
        steps: ArrayFile | None = None,
        labels: ArrayFile | None = None,
        summary: LabelSummary = NO_LABELS,
        view: View | None = None,
        rows: ArrayFile | None = None,
        unit: str = "series",
        faults: Path | None = None,
        usable: int | None = None,
    ):
        self.name = file.path
        self.summary = summary
        self._file, self._labels, self._steps, self._rows, self._unit = file, labels, steps, rows, unit
        self._values_file, self._faults_file = values, faults
        self._view: View = view or Plain()
        self.usable = len(self) if usable is None else usable
        self.channels = self._view.channels(values.shape if steps else values.example)

    def __len__(self) -> int:
        return (self._steps or self._values_file).shape[0]

    def __getstate__(self) -> dict[str, Any]:
        opened = ("_values", "_offsets", "_faults", "_numbers")
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def read(self, rows: Sequence[int]) -> list[np.ndarray | Fault]:
        """Values, float32 ``[T, C]``, of the series with these numbers, or what is wrong with them.

        Raises:
            DataError: The file has changed since it was opened.
        """
        self._check()
        return [Fault(*self._faults[str(row)]) if str(row) in self._faults else self._read_one(row) for row in rows]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Steps, float64 ``[len(rows)]``; 0 for faulty ones."""
        if self._steps is not None:
            return np.diff(self._offsets)[rows].astype(np.float64)
        return np.full(len(rows), float(self._view.length(self._values_file.example)))

    def labels(self) -> np.ndarray:
        """Label of every series, as ``summary`` says."""
        if self._labels is None:
            return np.full(len(self), -1)
        self._check()
        return np.array(self._labels.open())

    def where(self, row: int) -> str:
        """File and line or row."""
        return f"{self.name}, {self._unit} {row + 1 if self._rows is None else int(self._numbers[row])}"

    def _read_one(self, row: int) -> np.ndarray:
        if self._steps is None:
            return self._view(self._values[row])
        return self._view(self._values[self._offsets[row] : self._offsets[row + 1]])

    def _check(self) -> None:
        # A file that became shorter would end the process at the first access to what is gone.
        if not self._file.stamp:
            return
        try:
            check_unchanged(self._file, os.stat(self._file.path))
        except OSError as error:
            raise DataError(f"{self.name} is gone ({error.strerror}): keep the files of a run as they are") from error

    @functools.cached_property
    def _values(self) -> np.ndarray:
        return self._values_file.open()

    @functools.cached_property
    def _numbers(self) -> np.ndarray:
        assert self._rows is not None
        return self._rows.open()

    @functools.cached_property
    def _offsets(self) -> np.ndarray:
        assert self._steps is not None
        return np.concatenate([[0], np.cumsum(self._steps.open(), dtype=np.int64)])

    @functools.cached_property
    def _faults(self) -> dict[str, list[str]]:
        if self._faults_file is None:
            return {}
        try:
            return json.loads(self._faults_file.read_bytes())
        except (OSError, ValueError) as error:
            raise _lost(str(self._faults_file), error) from error


def _lost(path: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({error}): start again, and leave the cache alone")
