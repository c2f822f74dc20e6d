"""Access to a remote filesystem: exact ranges, tried again when the network fails."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec import AbstractFileSystem
from tqdm import tqdm

from flame.data.sources.storage import FileInfo
from flame.errors import DataError
from flame.tokenizer.cache import build_once, cache_folder

_T = TypeVar("_T")

_DELAYS = (0.5, 1.0, 2.0, 4.0)  # seconds between the attempts of a read
_CHECK_EVERY = 60.0  # seconds between looks at the version of a file that is being read
_CHUNK, _CHUNKS_AHEAD = 1 << 24, 4
_WORTH_TELLING = 1 << 27
_VERSIONS = ("ETag", "etag", "blob_id", "md5Hash", "generation", "Content-MD5", "checksum")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "Last-Modified", "created")
_PERMANENT = (FileNotFoundError, IsADirectoryError, PermissionError, NotImplementedError, ImportError, ValueError)

_ABSENT, _FORBIDDEN = (404, 410), (400, 401, 403, 405)  # of HTTP

logger = logging.getLogger(__name__)


class RemoteStorage:
    """Files of a filesystem that fsspec knows.

    Credentials and endpoints are those of the user's environment, as every fsspec filesystem finds them.

    Args:
        filesystem: The filesystem.
    """

    def __init__(self, filesystem: AbstractFileSystem):
        self.filesystem = filesystem
        self._opened = time.monotonic()
        self._looked_at: dict[str, float] = {}
        # Filesystems do not describe a file alike when they list it and when they are asked for it.
        self._versions: dict[str, FileInfo] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteStorage, (self.filesystem,)

    def info(self, path: str) -> FileInfo | None:
        """Size and version of a file; None if there is none."""
        try:
            return file_info(path, self.ask(path))
        except FileNotFoundError:
            return None

    def read(self, info: FileInfo, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)`` of a file, in one request.

        Raises:
            DataError: It cannot be read after five attempts, or changed since it was opened.
        """
        if start >= stop:
            return b""
        self._look_at(info)
        where = f"{info.path}, bytes {start}-{stop}"
        try:
            data: Any = attempt(where, lambda: self.filesystem.cat_file(info.path, start=start, end=stop))
        except FileNotFoundError as error:
            raise DataError(f"{info.path} is gone: keep the files of a run as they are") from error
        if len(data) != stop - start:
            raise DataError(
                f"{where}: {len(data):,} bytes came instead of {stop - start:,}: the file changed, or its server gives "
                "no ranges; download it first"
            )
        return data

    def local_path(self, info: FileInfo) -> Path:
        """The file, fetched once and kept in the cache."""

        def fetch(draft: Path) -> None:
            with open(draft, "wb") as file:
                for chunk in self.chunks(info):
                    file.write(chunk)

        return build_once(cache_folder() / "fetched" / info.key, fetch)

    def chunks(self, info: FileInfo) -> Iterator[bytes]:
        """The bytes of a file in order, a few chunks of 16 MiB read ahead."""
        starts = range(0, info.size, _CHUNK)
        name = info.path.rpartition("/")[2]
        with (
            ThreadPoolExecutor(_CHUNKS_AHEAD) as pool,
            tqdm(total=info.size, desc=name, unit="B", unit_scale=True, disable=info.size < _WORTH_TELLING) as bar,
        ):
            coming: deque[Any] = deque()
            for start in starts:
                coming.append(pool.submit(self.read, info, start, min(start + _CHUNK, info.size)))
                if len(coming) > _CHUNKS_AHEAD:
                    bar.update(_CHUNK)
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def ask(self, path: str) -> dict[str, Any]:
        """What the filesystem says of a file, not remembered from before."""

        def call() -> dict[str, Any]:
            self.filesystem.invalidate_cache()
            return self.filesystem.info(path)

        details = attempt(path, call)
        self._looked_at[path] = time.monotonic()
        return details

    def _look_at(self, info: FileInfo) -> None:
        """Compares a file with what it was when the source was opened, every now and then."""
        if time.monotonic() - self._looked_at.get(info.path, self._opened) < _CHECK_EVERY:
            return
        self._looked_at[info.path] = time.monotonic()  # other threads need not ask as well
        now = self.info(info.path)
        before = self._versions.setdefault(info.path, now) if now else info
        if now is None or now.size != info.size or now != before:
            what = "is gone" if now is None else f"changed ({info.size:,} bytes before, {now.size:,} now)"
            raise DataError(f"{info.path} {what}: keep the files of a run as they are, or start again")


def file_info(path: str, details: dict[str, Any]) -> FileInfo:
    """A file as its filesystem describes it.

    Raises:
        DataError: Its size is not told.
    """
    size = details.get("size")
    if size is None:
        raise DataError(f"{path}: the server does not tell the size of the file; download it first")
    stamps = [str(details[key]) for key in (*_VERSIONS, *_TIMES) if details.get(key)]
    return FileInfo(path, int(size), stamps[0] if stamps else "")


def attempt(what: str, call: Callable[[], _T]) -> _T:
    """Calls the network, five times if need be.

    Args:
        what: File and range, for messages.
        call: What to do.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It went wrong for good, or too often.
    """
    for delay in (*_DELAYS, None):
        try:
            return call()
        except Exception as error:  # every filesystem has errors of its own: of sockets, HTTP, cloud libraries
            cause = _cause(error)
            status = getattr(cause, "status", 0)
            reason = " ".join(str(cause).split())[:300] or type(cause).__name__
            if isinstance(cause, FileNotFoundError) or status in _ABSENT:
                raise FileNotFoundError(what) from error
            if isinstance(cause, _PERMANENT) or status in _FORBIDDEN or "Credentials" in type(cause).__name__:
                raise DataError(f"{what} cannot be read ({reason}): check the path and your credentials") from error
            if delay is None:
                raise DataError(
                    f"{what} cannot be read after {len(_DELAYS) + 1} attempts ({reason}): check the network"
                ) from error
            logger.info("%s: %s; trying again in %g s", what, reason, delay)
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _cause(error: Exception) -> BaseException:
    """What went wrong: the filesystem of HTTP says "not found" of servers that are down, and why only beneath that."""
    beneath = error.__cause__
    if isinstance(error, FileNotFoundError) and (isinstance(beneath, OSError) or hasattr(beneath, "status")):
        assert beneath is not None
        return beneath
    return error


def connect(url: str) -> tuple[RemoteStorage, str]:
    """Finds the filesystem of a URL.

    Returns:
        The storage, and the URL's path on it.

    Raises:
        DataError: fsspec does not know it, or lacks a package for it.
    """
    try:
        filesystem, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"'{url}' cannot be opened ({error}): check the URL and what is installed") from error
    return RemoteStorage(filesystem), path
