"""Opening files as streams of bytes, decompressed, with damage noticed."""

import io
from typing import Any

from fsspec.core import url_to_fs

from flame.data.compressed import DAMAGE, decompressed
from flame.data.prepare.reading.rows import BadFile

_CHUNK = 1 << 18


def open_input(path: str) -> Any:
    """Opens a file of any file system for reading bytes, as stored."""
    fs, name = url_to_fs(path)
    return fs.open(name, "rb")


class Stream(io.RawIOBase):
    """The plain bytes of a file, and how far reading has come.

    Args:
        path: Path or URL; its suffix says how it is compressed.

    Raises:
        BadFile: On reading: the file is truncated or damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._stored = open_input(path)
        self._plain: Any = decompressed(path, self._stored)
        self.read_bytes = 0
        """Plain bytes given out."""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer, as far as the next chunk goes."""
        try:
            # What comes before damage is given out first: read1 asks for no more than is at hand.
            data = (self._plain.read if self._plain is self._stored else self._plain.read1)(len(buffer))
        except DAMAGE as error:
            where = f"byte {self.read_bytes:,}" + (" of its contents" if self._plain is not self._stored else "")
            raise BadFile(f"{self.path} is damaged at {where}: {error}") from error
        buffer[: len(data)] = data
        self.read_bytes += len(data)
        return len(data)

    def stored_bytes(self) -> int:
        """How far the file has been read, in bytes as stored."""
        return int(self._stored.tell())

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            self._stored.close()
        super().close()


def open_stream(path: str) -> tuple[Stream, io.BufferedReader]:
    """Opens a file; returns the stream, to ask for its place, and a reader of lines on top."""
    stream = Stream(path)
    return stream, io.BufferedReader(stream, _CHUNK)
