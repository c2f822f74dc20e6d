"""Remote parquet files, read row group by row group."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flame.data.sources.arrow_tables import records_of
from flame.data.sources.packed_rows import ALL_IDS, ListColumn
from flame.data.sources.records import Record
from flame.data.sources.remote.footers import byte_ranges, first_line, read_footer, row_groups
from flame.data.sources.remote.pages import Pages
from flame.data.sources.remote.shape import block_of
from flame.data.sources.remote.storage import RemoteStorage
from flame.data.sources.storage import FileInfo
from flame.errors import DataError


class RowGroups:
    """Documents that are rows of remote parquet files; a page is a row group.

    Row groups of the usual size come first, and the others, such as the last one of every file, after them: so blocks
    are whole row groups. Within both, the order is that of the files.

    Args:
        name: What messages call this source.
        storage: Where the files lie.
        files: The files, each with its footer on this machine.
        columns: The columns to read; None for all.
        text_column: The column whose text is checked and put under ``"text"``; None leaves records as they are.
    """

    tokenized = False

    def __init__(
        self,
        name: str,
        storage: RemoteStorage,
        files: Sequence[tuple[FileInfo, Path]],
        columns: Sequence[str] | None,
        text_column: str | None,
    ):
        self.name = name
        self._storage = storage
        self._files = list(files)
        self._columns = columns
        self._text_column = text_column
        parts = []
        for number, (file, footer) in enumerate(files):
            groups = row_groups(read_footer(footer, file.path), columns)
            parts.append(np.insert(np.insert(groups, 0, np.arange(len(groups)), axis=1), 0, number, axis=1))
        # [groups, 5]: file, number in the file, rows, first row, bytes
        groups = np.concatenate(parts)
        groups = groups[groups[:, 2] > 0]
        sizes, counts = np.unique(groups[:, 2], return_counts=True)
        usual = int(sizes[np.argmax(counts * sizes)]) if len(sizes) else 1
        self._groups = groups[np.argsort(groups[:, 2] != usual, kind="stable")]
        self._firsts = np.append(0, np.cumsum(self._groups[:, 2]))
        self.block = block_of(usual, int(self._groups[:, 4].sum()))

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pages"}

    def prefetch(self, indices: Sequence[int]) -> None:
        """Has the row groups of these documents read by other threads."""
        self._pages.prefetch(dict.fromkeys(self._pages_of(indices).tolist()))

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the documents with these numbers, in this order."""
        self.prefetch(indices)
        pages = self._pages_of(indices)
        rows = np.asarray(indices, np.int64) - self._firsts[pages]
        records: list[Record | None] = [None] * len(indices)
        for page in dict.fromkeys(pages.tolist()):
            places = np.flatnonzero(pages == page).tolist()
            for place, record in zip(places, self._records(page, rows[places], indices, places), strict=True):
                records[place] = record
        return [record for record in records if record is not None]

    def where(self, index: int) -> str:
        """File and row."""
        page = int(self._pages_of([index])[0])
        number, _, _, first, _ = self._groups[page].tolist()
        return f"{self._files[number][0].path}, row {first + index - int(self._firsts[page]) + 1}"

    def _records(self, page: int, rows: np.ndarray, indices: Sequence[int], places: list[int]) -> list[Record]:
        table = self._pages.get(page).take(pa.array(rows))
        return records_of(table, self._text_column, lambda row: self.where(indices[places[row]]))

    def _pages_of(self, indices: Sequence[int]) -> np.ndarray:
        return np.searchsorted(self._firsts, np.asarray(indices, np.int64), side="right") - 1

    @functools.cached_property
    def _pages(self) -> Pages[Any]:
        return Pages(self.name, self._load, lambda page: int(self._groups[page, 4]))

    def _load(self, page: int) -> Any:
        number, group, rows, _, _ = self._groups[page].tolist()
        file, footer = self._files[number]
        metadata = read_footer(footer, file.path)
        ranges = byte_ranges(metadata, group, self._columns)
        window = _Window(file.size, [(start, self._storage.read(file, start, stop)) for start, stop in ranges])
        columns = None if self._columns is None else list(self._columns)
        try:
            with pq.ParquetFile(pa.PythonFile(window), metadata=metadata) as parquet:
                table = parquet.read_row_group(group, columns, use_threads=False).combine_chunks()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{file.path}, row group {group + 1} is damaged ({first_line(error)}): fetch the file again"
            ) from error
        if len(table) != rows:
            raise DataError(f"{file.path}, row group {group + 1} holds {len(table)} rows, its footer says {rows}")
        return table


class PackedRowGroups(RowGroups):
    """Packed rows of token ids in remote parquet files.

    Args:
        name: What messages call this source.
        storage: Where the files lie.
        files: The files, each with its footer on this machine.
        column: The column of token ids.
        vocab_size: Ids at or above it are bad rows; 0 if not known.
    """

    tokenized = True

    def __init__(
        self,
        name: str,
        storage: RemoteStorage,
        files: Sequence[tuple[FileInfo, Path]],
        column: str,
        vocab_size: int,
    ):
        super().__init__(name, storage, files, [column], None)
        self._limit = vocab_size or ALL_IDS

    def _records(self, page: int, rows: np.ndarray, indices: Sequence[int], places: list[int]) -> list[Record]:
        column: ListColumn = self._pages.get(page)
        return [
            column.row(row, self._limit, self.where(indices[place]))
            for row, place in zip(rows.tolist(), places, strict=True)
        ]

    def _load(self, page: int) -> ListColumn:
        return ListColumn(super()._load(page).column(0).chunk(0))


class _Window(io.RawIOBase):
    """A file of which some ranges are in memory."""

    def __init__(self, size: int, parts: Sequence[tuple[int, bytes]]):
        self._size = size
        self._parts = parts
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._place + size, self._size)
        for start, data in self._parts:
            if start <= self._place and stop <= start + len(data):
                self._place, place = stop, self._place
                return data[place - start : stop - start]
        raise OSError(f"bytes {self._place}-{stop} lie outside the row group")
