"""Plain text files: every file is a document, and a file that stands alone is a corpus cut into documents."""

import os
from collections.abc import Sequence
from pathlib import Path

from flame.data.sources.records import TEXT, BadRow, NearDocuments, Record, checked_text, tail_to_leave
from flame.data.sources.storage import FileInfo, LocalStorage, check_unchanged

_LONE_FILE_BYTES = 1 << 16
CUT_WINDOW = 4096


class TextFiles(NearDocuments):
    """Documents that are text files, or parts of them.

    Several files: each is one document. A single file is taken for a whole corpus and cut, after a line where there is
    one, into documents of at most 64 KiB; so are files longer than ``max_document_bytes``.

    Args:
        name: What messages call this source.
        paths: The files.
        max_document_bytes: Longest document.
    """

    def __init__(self, name: str, paths: Sequence[Path], max_document_bytes: int):
        self.name = name
        longest = longest_span(len(paths), max_document_bytes)
        files = [info for path in paths if (info := LocalStorage().info(str(path))) is not None]
        self._spans = [(file, start, stop) for file in files for start, stop in _spans(file, longest)]

    def __len__(self) -> int:
        return len(self._spans)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the documents with these numbers, in this order."""
        return [self._read_one(index) for index in indices]

    def where(self, index: int) -> str:
        """File, and bytes if it is not the whole or the beginning."""
        file, start, stop = self._spans[index]
        return f"{file.path}, bytes {start}-{stop}" if start else file.path

    def _read_one(self, index: int) -> Record:
        file, start, stop = self._spans[index]
        try:
            with open(file.path, "rb") as opened:
                check_unchanged(file, os.fstat(opened.fileno()))
                opened.seek(start)
                data = opened.read(stop - start)
        except OSError as error:
            return BadRow("unreadable file", self.where(index), error.strerror or "")
        return text_record(data, start, self.where(index))


def longest_span(files: int, max_document_bytes: int) -> int:
    """Bytes of the longest document: a lone file is a corpus of small ones."""
    return min(_LONE_FILE_BYTES, max_document_bytes) if files == 1 else max_document_bytes


def text_record(data: bytes, start: int, where: str) -> Record:
    """Turns the bytes of a document, which begins at byte ``start`` of its file, into a record."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return BadRow("invalid UTF-8", where, f"byte {start + error.start}")
    return checked_text({TEXT: text}, TEXT, where)


def _spans(file: FileInfo, longest: int) -> list[tuple[int, int]]:
    if file.size <= longest:
        return [(0, file.size)]
    spans, start = [], 0
    with open(file.path, "rb") as opened:
        while file.size - start > longest:
            window_start = max(start, start + longest - CUT_WINDOW)
            opened.seek(window_start)
            stop = start + longest - tail_to_leave(opened.read(start + longest - window_start))
            spans.append((start, stop))
            start = stop
    return [*spans, (start, file.size)]
