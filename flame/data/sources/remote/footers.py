"""Footers of remote parquet files: fetched once, kept in the cache, and what they say of row groups."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flame.data.sources.remote.storage import RemoteStorage
from flame.data.sources.storage import FileInfo
from flame.errors import DataError
from flame.tokenizer.cache import build_once, cache_folder

_TAIL = 1 << 16
_MAGIC = b"PAR1"
_ENDING = 8  # bytes: length of the footer, magic number
_CLOSE = 1 << 20  # bytes between two columns that are worth reading along


def fetch_footer(storage: RemoteStorage, file: FileInfo) -> Path:
    """Fetches the footer of a parquet file, unless that was done before.

    Returns:
        A local parquet file with nothing but the footer.

    Raises:
        DataError: The file is no parquet file, or not complete.
    """

    def fetch(draft: Path) -> None:
        tail = storage.read(file, max(0, file.size - _TAIL), file.size)
        length = int.from_bytes(tail[-_ENDING:-4], "little") + _ENDING
        if tail[-4:] != _MAGIC or length > file.size:
            raise DataError(f"{file.path} is not a complete parquet file (no footer at its end): fetch it again")
        if length > len(tail):
            tail = storage.read(file, file.size - length, file.size)
        draft.write_bytes(_MAGIC + tail[-length:])

    return build_once(cache_folder() / "footers" / f"{file.key}.parquet", fetch)


@functools.lru_cache(maxsize=64)
def read_footer(path: Path, url: str) -> pq.FileMetaData:
    """Reads a footer that was fetched.

    Raises:
        DataError: It is damaged.
    """
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{url} is not a complete parquet file ({first_line(error)}): fetch it again") from error


def column_chunks(
    metadata: pq.FileMetaData, group: int, columns: Sequence[str] | None
) -> Iterator[tuple[int, int, int]]:
    """Yields (first byte, last byte + 1, bytes when decoded) of the columns of a row group; of all if None."""
    row_group = metadata.row_group(group)
    for number in range(row_group.num_columns):
        chunk = row_group.column(number)
        if columns is not None and chunk.path_in_schema.split(".")[0] not in columns:
            continue
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            start = min(start, chunk.dictionary_page_offset)
        yield start, start + chunk.total_compressed_size, chunk.total_uncompressed_size


def byte_ranges(metadata: pq.FileMetaData, group: int, columns: Sequence[str] | None) -> list[tuple[int, int]]:
    """The bytes to read for some columns of a row group, those close to each other as one range."""
    ranges: list[tuple[int, int]] = []
    for start, stop, _ in sorted(column_chunks(metadata, group, columns)):
        if ranges and start - ranges[-1][1] <= _CLOSE:
            ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
        else:
            ranges.append((start, stop))
    return ranges


def row_groups(metadata: pq.FileMetaData, columns: Sequence[str] | None) -> np.ndarray:
    """(rows, first row, bytes when decoded) of every row group of a file: int64 ``[groups, 3]``."""
    rows = np.array([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], np.int64)
    sizes = [
        sum(size for _, _, size in column_chunks(metadata, group, columns)) for group in range(metadata.num_row_groups)
    ]
    return np.stack([rows, np.cumsum(rows) - rows, np.array(sizes, np.int64)], axis=1)


def first_line(error: BaseException) -> str:
    """What an error says, without its details."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
