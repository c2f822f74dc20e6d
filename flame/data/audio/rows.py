"""Rows of a listing: columns of Arrow, which are compact and go to worker processes in no time."""

from collections.abc import Sequence

import pyarrow as pa

from flame.data.sources.records import NearDocuments, Record
from flame.errors import DataError


class ListedRows(NearDocuments):
    """Audio files with their transcripts.

    Args:
        name: What messages call the source.
        rows: The path of every file, and its transcript; empty if it has none.
        seconds: How long each is, where it is known; None to find out by headers.

    Raises:
        DataError: The name of a file is not UTF-8.
    """

    def __init__(self, name: str, rows: Sequence[tuple[str, str]], seconds: Sequence[float | None] | None = None):
        self.name = name
        try:
            self._table = _table(rows)
        except UnicodeEncodeError as error:
            raise DataError(f"'{name}' has a file whose name is not UTF-8, {error.object!r}: rename it") from error
        self.seconds = list(seconds) if seconds is not None else [None] * len(rows)

    def __len__(self) -> int:
        return len(self._table)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the rows with these numbers, in this order."""
        return list(self._table.take(pa.array(indices, pa.int64())).to_pylist())

    def where(self, index: int) -> str:
        """The audio file."""
        return self._table["audio"][index].as_py()

    def paths(self) -> list[str]:
        """The file of every row."""
        return self._table["audio"].to_pylist()


def _table(rows: Sequence[tuple[str, str]]) -> pa.Table:
    return pa.table(
        {
            "audio": pa.array([path for path, _ in rows], pa.large_string()),
            "text": pa.array([text for _, text in rows], pa.large_string()),
        }
    )
