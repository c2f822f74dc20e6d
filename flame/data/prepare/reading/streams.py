"""Opening files as streams of bytes, decompressed, with damage noticed."""

import gzip
import io
import zlib
from typing import Any

import zstandard
from fsspec.core import url_to_fs

from flame.data.prepare.reading.rows import BadFile

_CHUNK = 1 << 18
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
"""What reading a damaged compressed file raises."""


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
        self._plain: Any = self._stored
        if path.lower().endswith(".gz"):
            self._plain = gzip.GzipFile(fileobj=self._stored)
        elif path.lower().endswith(".zst"):
            self._plain = _ZstdFile(self._stored)
        self.read_bytes = 0
        """Plain bytes given out."""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer, as far as the next chunk goes."""
        try:
            data = self._plain.read(len(buffer))
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


class _ZstdFile:
    """Frames of zstd one after the other; unlike zstandard's own reader, it notices that the last one is cut off."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self._frame: Any = None
        self._pending = b""
        self._plain = b""

    def read(self, size: int) -> bytes:
        while not self._plain:
            data = self._pending or self._stored.read(_CHUNK)
            self._pending = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstd frame")
                return b""
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._plain = self._frame.decompress(data)
            if self._frame.eof:
                self._pending, self._frame = self._frame.unused_data, None
        given, self._plain = self._plain[:size], self._plain[size:]
        return given


def open_stream(path: str) -> tuple[Stream, io.BufferedReader]:
    """Opens a file; returns the stream, to ask for its place, and a reader of lines on top."""
    stream = Stream(path)
    return stream, io.BufferedReader(stream, _CHUNK)
