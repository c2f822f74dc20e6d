"""Where the bytes of a source lie: files of this machine, or of another one (``remote``), read by ranges."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from flame.errors import DataError
from flame.tokenizer.cache import build_once, cache_folder


class FileInfo(NamedTuple):
    """A file as it was when the source was opened."""

    path: str
    """As the user knows it: a path of this machine or a URL."""
    size: int
    stamp: str
    """Time of its last change, or its version; empty if that is not known."""

    @property
    def key(self) -> str:
        """What this version of the file is called in the cache."""
        return hashlib.blake2b(f"{self.path}/{self.size}/{self.stamp}".encode(), digest_size=16).hexdigest()


class Storage(Protocol):
    """Access to files by ranges; picklable."""

    def info(self, path: str) -> FileInfo | None:
        """Size and version of a file; None if there is none."""
        ...

    def read(self, info: FileInfo, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)`` of a file.

        Raises:
            DataError: It cannot be read, or is not the file any more that was opened.
        """
        ...

    def local_path(self, info: FileInfo) -> Path:
        """A file of this machine with the same content; one from elsewhere is fetched once and kept in the cache."""
        ...


class LocalStorage:
    """Files of this machine."""

    def info(self, path: str) -> FileInfo | None:
        """Size and version of a file; None if there is none."""
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): check data.sources path") from error
        return FileInfo(path, stat.st_size, str(stat.st_mtime_ns))

    def read(self, info: FileInfo, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)`` of a file."""
        try:
            with open(info.path, "rb") as file:
                check_unchanged(info, os.fstat(file.fileno()))
                file.seek(start)
                return file.read(stop - start)
        except OSError as error:
            raise DataError(f"{info.path} cannot be read ({error.strerror}): check the file and its disk") from error

    def local_path(self, info: FileInfo) -> Path:
        """The file itself."""
        return Path(info.path)


def check_unchanged(info: FileInfo, stat: os.stat_result) -> None:
    """Compares a local file with what it was when the source was opened.

    Raises:
        DataError: It has changed since.
    """
    if stat.st_size != info.size or str(stat.st_mtime_ns) != info.stamp:
        raise DataError(
            f"{info.path} changed while it was read ({info.size:,} bytes before, {stat.st_size:,} now): keep the files "
            "of a run as they are; start again to train on the new content"
        )


def once_per_version(what: str, info: FileInfo, check: Callable[[], None]) -> None:
    """Runs a check of a file unless this version of it passed the same check before, on this machine.

    Args:
        what: Name of the check.
        info: The file.
        check: Raises ``DataError`` if the file does not pass.
    """

    def build(draft: Path) -> None:
        check()
        draft.touch()

    build_once(cache_folder() / "checked" / f"{what}_{info.key}", build)
