"""A source of series: the parts it consists of (files, mostly) read as one collection of examples."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from flame.data.series.labels import LabelSummary, codes_of, merge_labels
from flame.data.sources.records import BadRow, NearDocuments, Record
from flame.errors import DataError

VALUES = "values"
"""The key under which a record carries its values: float32 ``[T, C]``, NaN where a value is missing."""

LABEL = "label"
"""The key under which a record carries its class (a string), its target (a float), or None."""


class Fault(NamedTuple):
    """What is wrong with one series."""

    reason: str
    detail: str = ""


class SeriesPart(Protocol):
    """The series of one file, or of one table; picklable without their values."""

    name: str
    channels: int
    usable: int
    """Series that are not known to be faulty."""
    summary: LabelSummary

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> list[np.ndarray | Fault]:
        """Values, float32 ``[T, C]``, of the series with these numbers in the part, or what is wrong with them."""
        ...

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Steps, float64 ``[len(rows)]``; 0 for faulty ones."""
        ...

    def labels(self) -> np.ndarray:
        """Label of every series: codes or numbers, as ``summary`` says; shape ``[series]``."""
        ...

    def where(self, row: int) -> str:
        """File and line or row, for messages."""
        ...


class SeriesSource(NearDocuments):
    """Series with random access; worker processes get paths, and map the files anew.

    Args:
        name: What messages call this source.
        parts: What it consists of, at least one with a series.
        needs_labels: Whether a series without a label, where others have one, is a bad row; else its label is None.

    Raises:
        DataError: The parts differ in channels or in the kind of their labels, or hold no series.
    """

    def __init__(self, name: str, parts: Sequence[SeriesPart], needs_labels: bool = True):
        self.name = name
        self._parts = [part for part in parts if len(part)]
        if not self._parts:
            raise DataError(f"'{name}' holds no series: check data.sources path, split and data_files")
        self._firsts = np.cumsum([0] + [len(part) for part in self._parts])
        self._refuse_hopeless()
        self.channels = self._common_channels()
        """Values per step."""
        self.classes = merge_labels([(part.name, part.summary) for part in self._parts])
        """Names of the classes, sorted (numbers as numbers); None if there are no labels, or they are real numbers."""
        self.labelled = self._parts[0].summary.kind != "none"
        """Whether the series have labels at all."""
        self._needs_labels = needs_labels
        if needs_labels and self.classes == []:
            raise DataError(f"not one of the {len(self):,} series of '{name}' has a label: check label_column")

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_codes", "targets")}

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the series with these numbers, in this order.

        Returns:
            For each ``{"values": float32 [T, C], "label": str | float | None}``, or a ``BadRow``.

        Raises:
            DataError: A file is not what it was when the source was opened.
        """
        records: list[Record] = [{}] * len(indices)
        for number, places, rows in self._shares(indices):
            part = self._parts[number]
            for place, row, values in zip(places, rows, part.read(rows), strict=True):
                records[place] = self._record(values, int(indices[place]), part.where(row))
        return records

    def where(self, index: int) -> str:
        """File and line or row."""
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self._parts[number].where(index - int(self._firsts[number]))

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Steps of these series, float64; 0 for those known to be faulty."""
        steps = np.zeros(len(indices))
        for number, places, rows in self._shares(indices):
            steps[places] = self._parts[number].lengths(np.asarray(rows))
        return steps

    def take_as_numbers(self) -> None:
        """Makes labels numbers to predict, if they are numbers that were taken for classes since all are integral."""
        if {part.summary.kind for part in self._parts} <= {"numbers", "targets"}:
            self.classes = None
            self.__dict__.pop("targets", None)

    @functools.cached_property
    def targets(self) -> np.ndarray | None:
        """The values to predict, float64 ``[series]`` with NaN where one is missing; None if labels are classes."""
        if self.classes is not None or not self.labelled:
            return None
        return np.concatenate([part.labels() for part in self._parts]).astype(np.float64)

    @functools.cached_property
    def _codes(self) -> np.ndarray:
        """Number of every series' class, -1 where it has none."""
        assert self.classes is not None
        return np.concatenate([codes_of(part.labels(), part.summary, self.classes) for part in self._parts])

    def _record(self, values: np.ndarray | Fault, index: int, where: str) -> Record:
        if isinstance(values, Fault):
            return BadRow(values.reason, where, values.detail)
        if not len(values):
            return BadRow("empty series", where)
        if values.shape[1] != self.channels:
            return BadRow("other number of channels", where, f"{values.shape[1]}, not {self.channels}")
        if np.isinf(values).any():
            step, channel = np.argwhere(np.isinf(values))[0]
            return BadRow("infinite value", where, f"step {step + 1}, channel {channel + 1}")
        label: str | float | None = None
        if self.classes is not None:
            code = int(self._codes[index])
            label = None if code < 0 else self.classes[code]
        elif self.targets is not None:
            target = float(self.targets[index])
            label = None if not np.isfinite(target) else target
        if label is None and self.labelled and self._needs_labels:
            return BadRow("no label", where)
        return {VALUES: values, LABEL: label}

    def _shares(self, indices: Sequence[int] | np.ndarray) -> list[tuple[int, list[int], list[int]]]:
        """What every part has to do: its number, the places in ``indices``, and its own row numbers."""
        wanted = np.asarray(indices, np.int64)
        numbers = np.searchsorted(self._firsts, wanted, side="right") - 1
        shares = []
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            shares.append((number, places.tolist(), (wanted[places] - self._firsts[number]).tolist()))
        return shares

    def _refuse_hopeless(self) -> None:
        if any(part.usable for part in self._parts):
            return
        part = self._parts[0]
        fault = part.read([0])[0]
        said = f": {fault.reason}{f' ({fault.detail})' if fault.detail else ''}" if isinstance(fault, Fault) else ""
        raise DataError(f"none of the {len(self):,} series of '{self.name}' can be used, as {part.where(0)}{said}")

    def _common_channels(self) -> int:
        usable = [part for part in self._parts if part.usable]
        odd = next((part for part in usable if part.channels != usable[0].channels), None)
        if odd is not None:
            raise DataError(
                f"{usable[0].name} has {usable[0].channels} channels and {odd.name} {odd.channels}: "
                "make sources of their own of files that differ in channels"
            )
        return usable[0].channels
