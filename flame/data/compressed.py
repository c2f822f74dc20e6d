"""Reading compressed files (.gz, .zst) as plain bytes, with an early end noticed: it is never taken for their end."""

import gzip
import io
import zlib
from typing import Any, BinaryIO, cast

import zstandard

from flame.data.suffixes import is_compressed

DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
"""What reading a damaged or incomplete compressed file raises."""
_STORED = 1 << 16  # bytes decompressed at once
_PLAIN = 1 << 18


def decompressed(name: str, stored: BinaryIO) -> BinaryIO:
    """The plain bytes of a file; the stream itself if its name does not say that it is compressed.

    Args:
        name: Its suffix says how it is compressed.
        stored: Its bytes as stored; closing what is returned closes it too only if it is not compressed.

    Raises:
        DAMAGE: On reading: the file is damaged, or ends early.
    """
    if not is_compressed(name):
        return stored
    if name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stored))
    return cast(BinaryIO, io.BufferedReader(_Frames(stored), _PLAIN))


class _Frames(io.RawIOBase):
    """Frames of zstd one after the other; unlike zstandard's own reader, it notices that the last one is cut off."""

    def __init__(self, stored: BinaryIO) -> None:
        self._stored = stored
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._pending = b""  # stored bytes behind the end of a frame
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer, as far as what has been decompressed goes."""
        while not self._plain:
            data = self._pending or self._stored.read(_STORED)
            self._pending = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._plain = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._pending, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count
