"""What readers of text have in common: lines with their numbers, and numbers out of text."""

import codecs
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import numpy as np

from flame.data.compressed import DAMAGE, decompressed
from flame.data.sources.storage import FileInfo
from flame.errors import DataError

BROKEN = "\ufffd"
"""What stands for bytes that are no text, in streams of ``utf8_stream``."""

_READ = 1 << 18
_SHOWN = 40  # characters of a faulty cell in a message


class NotNumbersError(ValueError):
    """Text that should be numbers and is not; the message says which part."""


def lines_of(file: FileInfo) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1; ``.gz`` and ``.zst`` are decompressed.

    Raises:
        DataError: The file cannot be read or decompressed.
    """
    number = 0
    try:
        with open(file.path, "rb") as stored:
            for number, line in enumerate(decompressed(file.path, stored), 1):
                line = line.strip()
                if line:
                    yield number, line
    except DAMAGE as error:
        raise DataError(
            f"{file.path} cannot be decompressed after line {number} ({error}): it is damaged or incomplete, fetch it "
            "again"
        ) from error
    except OSError as error:
        raise DataError(f"{file.path} cannot be read ({error.strerror}): check the file and its disk") from error


def numbers_of(text: str, separator: str | None = ",") -> np.ndarray:
    """Numbers out of text, float64 ``[numbers]``; ``?`` and ``NaN`` are NaN.

    Args:
        text: Numbers with separators between them; nothing but space is no numbers.
        separator: What is between them; None for any space.

    Raises:
        NotNumbersError: One is none.
    """
    cells = text.split(separator)
    try:
        return np.array(list(map(float, cells)))
    except ValueError:
        pass
    if not text.strip():
        return np.empty(0)
    try:
        return np.array([np.nan if cell.strip() == "?" else float(cell) for cell in cells])
    except ValueError:
        place = next(place for place, cell in enumerate(cells) if not is_number(cell))
        raise NotNumbersError(f"value {place + 1} is '{shown(cells[place].strip())}'") from None


def utf8_stream(stored: BinaryIO) -> BinaryIO:
    """The same bytes, but for those that are no UTF-8, which become ``BROKEN``."""
    return cast(BinaryIO, io.BufferedReader(_Mended(stored), _READ))


def is_number(cell: str) -> bool:
    """Whether a cell of text is a number, or stands for a missing one."""
    if cell.strip() == "?":
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True


def one_line(error: BaseException) -> str:
    """What an error says, for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def shown(text: str) -> str:
    """Text, shortened for a message."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class _Mended(io.RawIOBase):
    """Text in UTF-8, whatever the stream holds."""

    def __init__(self, stored: BinaryIO) -> None:
        self._stored = stored
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer, as far as what has been read goes."""
        while not self._pending:
            data = self._stored.read(_READ)
            self._pending = memoryview(self._decoder.decode(data, final=not data).encode())
            if not data and not self._pending:
                return 0
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count
