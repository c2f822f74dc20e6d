"""Tables of the ``datasets`` library: parquet files and hub datasets, memory-mapped from its Arrow cache.

Parquet has no cheap access to single rows (a whole row group is decoded for one of them), so ``datasets`` writes it
once as Arrow, from which any row is read in microseconds whatever the size of the corpus.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from flame.data.sources.records import BadRow, NearDocuments, Record, checked_text


class ArrowTable(NearDocuments):
    """Documents that are rows of a memory-mapped table.

    Args:
        name: What messages call this source.
        dataset: The table.
        files: The files that the rows come from, in order, with their row counts; empty if not known.
        text_column: The column whose text is checked and put under ``"text"``; None leaves records as they are.
    """

    def __init__(
        self,
        name: str,
        dataset: datasets.Dataset,
        files: Sequence[tuple[Path, int]] = (),
        text_column: str | None = None,
    ):
        self.name = name
        self._rows = dataset.with_format("arrow")
        self._paths = [path for path, _ in files]
        self._firsts = np.cumsum([0] + [rows for _, rows in files])
        self._text_column = text_column

    @property
    def dataset(self) -> datasets.Dataset:
        """The table."""
        return self._rows

    def with_columns(self, names: list[str]) -> "ArrowTable":
        """The same rows with no other columns than these."""
        counts = list(zip(self._paths, np.diff(self._firsts).tolist(), strict=True))
        return ArrowTable(self.name, self._rows.select_columns(names), counts, self._text_column)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the documents with these numbers, in this order."""
        if not len(indices):
            return []
        table: pa.Table = self._rows[list(indices)]  # pyright: ignore[reportAssignmentType]
        return records_of(table, self._text_column, lambda row: self.where(indices[row]))

    def where(self, index: int) -> str:
        """File (or dataset) and row."""
        if not self._paths:
            return f"{self.name}, row {index + 1}"
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return f"{self._paths[number]}, row {index - int(self._firsts[number]) + 1}"


def records_of(table: pa.Table, text_column: str | None, where: Callable[[int], str]) -> list[Record]:
    """Turns rows into records.

    Args:
        table: The rows.
        text_column: The column whose text is checked and put under ``"text"``; None leaves records as they are.
        where: Gives file and row of a row of ``table``, for messages.
    """
    try:
        records: list[Record] = list(table.to_pylist())
    except UnicodeDecodeError:
        records = [_record_of(table.slice(row, 1), row, where) for row in range(len(table))]
    if text_column is None:
        return records
    return [
        checked_text(record, text_column, where(row)) if isinstance(record, dict) else record
        for row, record in enumerate(records)
    ]


def _record_of(table: pa.Table, row: int, where: Callable[[int], str]) -> Record:
    try:
        return table.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRow("invalid UTF-8", where(row), f"byte {error.start} of the text")
