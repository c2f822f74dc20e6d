"""Plain text files: every file is a document, and a file that stands alone is a corpus cut into documents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flame.data.sources.records import TEXT, BadRow, checked_text, tail_to_leave

_LONE_FILE_BYTES = 1 << 16
_CUT_WINDOW = 4096


class TextFiles:
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
        longest = min(_LONE_FILE_BYTES, max_document_bytes) if len(paths) == 1 else max_document_bytes
        self._spans = [(path, start, stop) for path in paths for start, stop in _spans(path, longest)]

    def __len__(self) -> int:
        return len(self._spans)

    def read(self, indices: Sequence[int]) -> list[dict[str, Any] | BadRow]:
        """Reads the documents with these numbers, in this order."""
        return [self._read_one(*self._spans[index]) for index in indices]

    def _read_one(self, path: Path, start: int, stop: int) -> dict[str, Any] | BadRow:
        where = f"{path}, bytes {start}-{stop}" if start else str(path)
        try:
            with open(path, "rb") as file:
                file.seek(start)
                text = file.read(stop - start).decode()
        except UnicodeDecodeError as error:
            return BadRow("invalid UTF-8", where, f"byte {start + error.start}")
        except OSError as error:
            return BadRow("unreadable file", where, error.strerror or "")
        return checked_text({TEXT: text}, TEXT, where)


def _spans(path: Path, longest: int) -> list[tuple[int, int]]:
    size = path.stat().st_size
    if size <= longest:
        return [(0, size)]
    spans, start = [], 0
    with open(path, "rb") as file:
        while size - start > longest:
            window_start = max(start, start + longest - _CUT_WINDOW)
            file.seek(window_start)
            stop = start + longest - tail_to_leave(file.read(start + longest - window_start))
            spans.append((start, stop))
            start = stop
    return [*spans, (start, size)]
