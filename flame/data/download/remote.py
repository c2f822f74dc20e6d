"""Reading a remote file from any byte on: over HTTP with range requests, and over whatever else fsspec opens."""

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import SplitResult, urlsplit

import fsspec

from flame import __version__
from flame.data.download.faults import FileFault, Unreachable
from flame.errors import DataError

_PATIENCE = 60.0  # seconds without a byte
_BRIEF_PATIENCE = 10.0
_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated")
_WEB = ("http", "https")
_PASSING = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
_REFUSED = (401, 403)
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch, and what is known of it beforehand."""

    split: str
    path: str
    """Its place below the folder of its split."""
    url: str
    size: int | None = None
    """Bytes."""
    digest: str = ""
    """``algorithm:hexadecimal``."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent to the first host only, not to where it redirects: they may hold a token."""

    @property
    def name(self) -> str:
        """Its last part, such as ``00.jsonl.zst``."""
        return PurePosixPath(self.path).name


@dataclass
class Answer:
    """What a server sends."""

    stream: "Readable"
    start: int
    """The first byte that it sends."""
    total: int | None
    """Size of the whole file, if it says so."""
    version: str
    """Changes when the file does; empty if the server does not say."""


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


class PassingFault(Exception):
    """Worth another try."""

    def __init__(self, message: str, wait: float = 0.0, connected: bool = True):
        super().__init__(message)
        self.wait = wait
        """Seconds that the server asks for."""
        self.connected = connected
        """Whether there was a server to talk to."""


class NothingThere(Exception):
    """There is nothing from this byte on; ``total`` is the size that the server claims, if it does."""

    def __init__(self, total: int | None):
        super().__init__(f"the file has {total} bytes")
        self.total = total


@contextmanager
def open_remote(file: RemoteFile, start: int = 0, version: str = "", patience: float = _PATIENCE) -> Iterator[Answer]:
    """Opens a remote file, to be read from byte ``start`` on if the server can do that.

    Args:
        file: what to open.
        start: the first byte wanted.
        version: of the answer that gave the bytes before ``start``; if the file has changed since, all of it is sent.
        patience: Seconds to wait for a byte.

    Raises:
        PassingFault: It may work the next time; reading may raise it too.
        NothingThere: The file ends before ``start``.
        FileFault: The file does not exist, or is not to be had without permission.
    """
    if urlsplit(file.url).scheme not in _WEB:
        yield _open_filesystem(file, start, version)
        return
    request = urllib.request.Request(file.url)
    request.add_header("Accept-Encoding", "identity")
    request.add_header("User-Agent", f"flame/{__version__}")
    for name, value in file.headers.items():
        request.add_unredirected_header(name, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version:
            request.add_header("If-Range", version)
    try:
        with urllib.request.urlopen(request, timeout=patience) as response:
            yield _answer(response)
    except urllib.error.HTTPError as error:
        raise _explained(error, file) from error
    except urllib.error.URLError as error:
        raise PassingFault(f"cannot reach {_host(file.url)} ({_reason(error)})", connected=False) from error
    except (http.client.HTTPException, OSError) as error:
        raise PassingFault(f"{_host(file.url)} broke off ({_reason(error)})") from error


def check_url(url: str) -> SplitResult:
    """Splits an address that ``open_remote`` can open; one without a scheme is a file of this machine.

    Raises:
        DataError: It is none.
    """
    try:
        parts = urlsplit(url)
        is_fit = parts.scheme not in _WEB or bool(parts.hostname and url.isascii() and parts.port != 0)
    except ValueError as error:
        raise DataError(f"'{url}' is no address ({error}): mend the registry") from error
    if not is_fit or any(sign.isspace() for sign in url):
        raise DataError(f"'{url}' is no address: name a host, and write other signs than ASCII as %..")
    if parts.scheme and parts.scheme not in (*_WEB, *fsspec.available_protocols()):
        raise DataError(f"'{url}' is no address: '{parts.scheme}' is none of http, https, s3, gs, file and their like")
    return parts


def answers(url: str) -> bool:
    """Whether anything answers at an address, asked once and quickly."""
    try:
        with open_remote(RemoteFile("", "", url), patience=_BRIEF_PATIENCE):
            return True
    except PassingFault as error:
        return error.connected
    except FileFault:
        return True


def read_whole(file: RemoteFile) -> bytes:
    """Reads a small file at once.

    Raises:
        Unreachable: There is no connection, or it breaks off.
        FileFault: The file is not to be had.
    """
    try:
        with open_remote(file) as answer:
            return cast(Any, answer.stream).read()
    except PassingFault as error:
        raise Unreachable(f"{file.url} cannot be read: {error}; check the network and try again") from error


def size_of(file: RemoteFile) -> int | None:
    """Asks for the size of a file without reading it. Raises as ``read_whole`` does."""
    if file.size is not None:
        return file.size
    try:
        with open_remote(file) as answer:
            return answer.total
    except PassingFault as error:
        raise Unreachable(f"{file.url} cannot be read: {error}; check the network and try again") from error


def _answer(response: http.client.HTTPResponse) -> Answer:
    # A weak ETag says nothing about bytes.
    tag = response.headers.get("ETag", "")
    version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
    if response.status == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not found or found[1] is None:
            raise PassingFault("a part was sent that does not say where it belongs")
        return Answer(response, int(found[1]), None if found[2] == "*" else int(found[2]), version)
    length = response.headers.get("Content-Length", "")
    return Answer(response, 0, int(length) if length.isdecimal() else None, version)


def _explained(error: urllib.error.HTTPError, file: RemoteFile) -> Exception:
    if error.code == 416:
        found = _CONTENT_RANGE.fullmatch(error.headers.get("Content-Range", ""))
        return NothingThere(int(found[2]) if found and found[2] != "*" else None)
    if error.code in _PASSING:
        after = error.headers.get("Retry-After", "")
        return PassingFault(
            f"{_host(file.url)} answers {error.code} {error.reason}", float(after) if after.isdecimal() else 0.0
        )
    if error.code in _REFUSED:
        return FileFault(
            f"{file.url} is refused ({error.code} {error.reason}): a dataset of the hub may want you to accept its "
            "terms and to run `hf auth login`"
        )
    return FileFault(
        f"{file.url} is not to be had ({error.code} {error.reason}): check the registry, it may have moved"
    )


def _open_filesystem(file: RemoteFile, start: int, version: str) -> Answer:
    try:
        system, path = fsspec.core.url_to_fs(file.url)
        info = system.info(path)
        size = int(info["size"])
        stamp = next((str(info[key]) for key in _STAMPS if info.get(key)), "")
        if version and version != stamp:
            start = 0
        if start > size:
            raise NothingThere(size)
        stream = cast(BinaryIO, system.open(path, "rb"))
        stream.seek(start)
    except FileNotFoundError as error:
        raise FileFault(f"{file.url} does not exist") from error
    except ImportError as error:
        raise FileFault(f"{file.url}: {error}") from error
    except OSError as error:
        raise PassingFault(f"{file.url} cannot be read ({_reason(error)})", connected=False) from error
    return Answer(stream, start, size, stamp)


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _reason(error: BaseException) -> str:
    cause = getattr(error, "reason", None) or error
    return " ".join(str(getattr(cause, "strerror", None) or cause).split()) or type(cause).__name__
