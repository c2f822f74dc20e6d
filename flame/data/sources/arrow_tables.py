"""Tables of the ``datasets`` library: parquet files and hub datasets, memory-mapped from its Arrow cache.

Parquet has no cheap access to single rows (a whole row group is decoded for one of them), so ``datasets`` writes it
once as Arrow, from which any row is read in microseconds whatever the size of the corpus.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from flame.data.sources.records import BadRow, checked_text


class ArrowTable:
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

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Sequence[int]) -> list[dict[str, Any] | BadRow]:
        """Reads the documents with these numbers, in this order."""
        if not len(indices):
            return []
        table: pa.Table = self._rows[list(indices)]  # pyright: ignore[reportAssignmentType]
        try:
            records: list[dict[str, Any] | BadRow] = list(table.to_pylist())
        except UnicodeDecodeError:
            records = [self._read_one(table.slice(i, 1), index) for i, index in enumerate(indices)]
        column = self._text_column
        if column is None:
            return records
        return [
            checked_text(record, column, self._where(index)) if isinstance(record, dict) else record
            for record, index in zip(records, indices, strict=True)
        ]

    def _read_one(self, table: pa.Table, index: int) -> dict[str, Any] | BadRow:
        try:
            return table.to_pylist()[0]
        except UnicodeDecodeError as error:
            return BadRow("invalid UTF-8", self._where(index), f"byte {error.start} of the text")

    def _where(self, index: int) -> str:
        if not self._paths:
            return f"{self.name}, row {index + 1}"
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return f"{self._paths[number]}, row {index - int(self._firsts[number]) + 1}"
