"""Packed rows: tables with a column of token ids, each row a document (such as 4,097 tokens cut from a stream)."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from flame.data.sources.records import IDS, BadRow, NearDocuments, Record

ALL_IDS = 1 << 31


class ListColumn:
    """One chunk of an Arrow column of lists of integers, as numpy sees it.

    Args:
        chunk: The chunk; its memory is not copied.
    """

    def __init__(self, chunk: pa.Array):
        self._validity = None if chunk.null_count == 0 else chunk.is_valid()
        if pa.types.is_fixed_size_list(chunk.type):
            self._offsets = (np.arange(len(chunk) + 1) + chunk.offset) * chunk.type.list_size
        else:
            self._offsets = chunk.offsets.to_numpy(zero_copy_only=False)
        values = chunk.values
        self._nulls = None if values.null_count == 0 else values.is_null()
        self._values = values.to_numpy(zero_copy_only=False)

    def row(self, index: int, limit: int, where: str) -> Record:
        """One row as a tokenized record, or what is wrong with it.

        Args:
            index: Number of the row in this chunk.
            limit: Ids at or above it are errors.
            where: File and row, for messages.
        """
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        if self._validity is not None and not self._validity[index].as_py():
            return BadRow("no token ids", where, "the row is null")
        if start == stop:
            return BadRow("no token ids", where, "the row is empty")
        if self._nulls is not None and any(self._nulls[start:stop].to_pylist()):
            return BadRow("no token ids", where, "one of them is null")
        ids = self._values[start:stop]
        least, largest = ids.min(), ids.max()
        if least < 0 or largest >= limit:
            worst = least if least < 0 else largest
            return BadRow("id outside the vocabulary", where, f"id {int(worst)} of a vocabulary of {limit:,}")
        return {IDS: ids.astype(np.int32)}


class PackedRows(NearDocuments):
    """Rows of a memory-mapped table of the ``datasets`` library.

    Args:
        name: What messages call this source.
        dataset: The table.
        files: The files that the rows come from, in order, with their row counts; empty if not known.
        column: The column of token ids.
        vocab_size: Ids at or above it are bad rows; 0 if not known.
    """

    tokenized = True

    def __init__(
        self,
        name: str,
        dataset: datasets.Dataset,
        files: Sequence[tuple[Path, int]],
        column: str,
        vocab_size: int,
    ):
        self.name = name
        self._dataset = dataset
        self._paths = [str(path) for path, _ in files]
        self._file_firsts = np.cumsum([0] + [rows for _, rows in files])
        self._column = column
        self._limit = vocab_size or ALL_IDS
        lengths = [len(chunk) for chunk in dataset.data.column(column).chunks]
        self._firsts = np.cumsum([0, *lengths])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_chunks"}

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the documents with these numbers, in this order."""
        numbers = np.searchsorted(self._firsts, np.asarray(indices), side="right") - 1
        return [
            self._chunk(number).row(index - int(self._firsts[number]), self._limit, self.where(index))
            for index, number in zip(indices, numbers.tolist(), strict=True)
        ]

    def where(self, index: int) -> str:
        """File and row."""
        if not self._paths:
            return f"{self.name}, row {index + 1}"
        number = int(np.searchsorted(self._file_firsts, index, side="right")) - 1
        return f"{self._paths[number]}, row {index - int(self._file_firsts[number]) + 1}"

    def _chunk(self, number: int) -> ListColumn:
        if number not in self._chunks:
            self._chunks[number] = ListColumn(self._dataset.data.column(self._column).chunk(number))
        return self._chunks[number]

    @functools.cached_property
    def _chunks(self) -> dict[int, ListColumn]:
        return {}
