"""Files of lines with random access: JSON Lines, and plain text with a document per line."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flame.data.sources.columns import SourceConfig, find_text_column
from flame.data.sources.records import MESSAGES, TEXT, BadRow, NearDocuments, Record, checked_text
from flame.data.sources.storage import FileInfo, LocalStorage

_PROBED_ROWS = 100
_LONGEST_LINES = 16  # times max_document_bytes: beyond this, a line is not even parsed


class IndexedFile(NamedTuple):
    """A file and where its lines begin."""

    path: str
    """The file as the user knows it."""
    plain: FileInfo
    """The same, decompressed."""
    index: Path
    """The offsets of its lines; see ``line_index``."""


class LineFiles(NearDocuments):
    """Documents that are lines of files.

    Args:
        name: What messages call this source.
        files: The indexed files, at least one of them with a line.
        is_json: Whether a line is a JSON object, or the text itself.
        max_document_bytes: Longest document; a line 16 times as long is a bad row.
    """

    def __init__(self, name: str, files: Sequence[IndexedFile], is_json: bool, max_document_bytes: int):
        self.name = name
        self.text_column: str | None = None if is_json else TEXT
        """The JSON key whose text is checked and put under ``"text"``; None leaves records as they are."""
        self.key_of_lists = ""
        """The key under which a JSON list is a record, such as one of messages; empty if it is a bad row."""
        self._files = list(files)
        self._is_json = is_json
        self._longest_line = _LONGEST_LINES * max_document_bytes
        # [files + 1]: the number of the first document of every file, and of all
        self._firsts = np.cumsum([0] + [len(np.load(file.index, mmap_mode="r")) - 1 for file in files])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes map the indexes anew instead of being sent a copy.
        return {name: value for name, value in self.__dict__.items() if name != "_offsets"}

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the documents with these numbers, in this order."""
        return [self._read_one(index) for index in indices]

    def columns(self) -> dict[str, None]:
        """Returns the JSON keys that the first rows have, in order of appearance."""
        keys: dict[str, None] = {}
        for record in self.read(range(min(_PROBED_ROWS, len(self)))):
            if isinstance(record, dict):
                keys.update(dict.fromkeys(record))
        return keys

    @functools.cached_property
    def _offsets(self) -> list[np.ndarray]:
        return [np.load(file.index, mmap_mode="r") for file in self._files]

    def where(self, index: int) -> str:
        """File and row, blank lines not counted."""
        number, line = self._place(index)
        return f"{self._files[number].path}, row {line + 1}"

    def _place(self, index: int) -> tuple[int, int]:
        """The number of a document's file, and of its line in it."""
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return number, index - int(self._firsts[number])

    def _read_one(self, index: int) -> Record:
        number, line = self._place(index)
        where = f"{self._files[number].path}, row {line + 1}"
        start, stop = (int(offset) for offset in self._offsets[number][line : line + 2])
        if stop - start > self._longest_line:
            return BadRow("row too large", where, f"{stop - start:,} bytes")
        return self._parse(self._bytes(index, number, start, stop), where)

    def _bytes(self, index: int, number: int, start: int, stop: int) -> bytes:
        """The bytes of document ``index``, which is at ``[start, stop)`` of a file."""
        return LocalStorage().read(self._files[number].plain, start, stop)

    def _parse(self, data: bytes, where: str) -> Record:
        try:
            record = json.loads(data) if self._is_json else {TEXT: data.decode().rstrip("\r\n")}
        except UnicodeDecodeError as error:
            return BadRow("invalid UTF-8", where, f"byte {error.start} of the row")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError
            return BadRow("not JSON", where, str(error))
        if isinstance(record, list) and self.key_of_lists:
            record = {self.key_of_lists: record}
        if not isinstance(record, dict):
            return BadRow("not a JSON object", where, f"it is {type(record).__name__}")
        return record if self.text_column is None else checked_text(record, self.text_column, where)


def choose_columns(source: LineFiles, config: SourceConfig, columns: Sequence[str] | None) -> None:
    """Finds out from the first rows of a source of JSON lines where its text is.

    Raises:
        DataError: A column is missing.
    """
    if columns is None:
        source.key_of_lists = MESSAGES
    found = source.columns()
    if found:  # if no row could be read at all, the policy for bad rows decides
        source.text_column = find_text_column(config, columns, list(found), config.path)
    elif columns is None:
        source.text_column = config.text_column or None
    elif TEXT in columns:
        source.text_column = config.text_column or TEXT
