"""Fetching one file: continued wherever the last try stopped, and under its own name only when whole and verified."""

import hashlib
import json
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flame.data.download.faults import DamagedFile, FileFault, Unreachable, disk_fault
from flame.data.download.remote import Answer, NothingThere, PassingFault, RemoteFile, open_remote
from flame.files import move

_CHUNK = 1 << 16
_LONGEST_WAIT = 60.0  # seconds
_WHOLE_TRIES = 3  # downloads of a file whose bytes turn out wrong


class Stopped(Exception):
    """The user, or another file's failure, has ended the run."""


@dataclass
class Link:
    """What all transfers of a run share.

    Attributes:
        tries: Failures in a row, without a byte in between, after which a file is given up.
        first_wait: Seconds before the second try; doubled for every further one.
        advance: Told of bytes that arrived; of fewer than none, if some have to come again.
    """

    tries: int = 6
    first_wait: float = 1.0
    advance: Callable[[int], Any] = lambda count: None
    stop: threading.Event = field(default_factory=threading.Event)
    connected: bool = False
    """Whether any server has answered. If none ever did, there is no point in patience."""

    def pause(self, failures: int, asked: float) -> None:
        """Waits before the next try, somewhat unevenly so that many transfers do not come back at once."""
        wait = max(asked, self.first_wait * 2 ** (failures - 1) * random.uniform(0.5, 1.0))
        if self.stop.wait(min(wait, _LONGEST_WAIT)):
            raise Stopped


def fetch(file: RemoteFile, target: Path, link: Link) -> str:
    """Fetches a file, unless ``target`` exists.

    Bytes go to ``target.part``, which a later call continues. ``target`` appears when the file has the size that is
    known for it, or that the server states, and the checksum if one is known.

    Returns:
        The file's checksum: of the kind that is known for it, else sha256.

    Raises:
        FileFault: It cannot be had.
        Unreachable: There is no connection.
        DiskFault: It cannot be written.
        Stopped: ``link.stop`` was set.
    """
    part = _Part(target.with_name(target.name + ".part"), file, link)
    if target.exists():
        digest = part.digest_of(target)
        if not file.digest or digest == file.digest:
            link.advance(target.stat().st_size)
            return digest
        target.unlink()
    make_folder(target.parent)
    failures, wrong, most = 0, 0, part.size
    while True:
        try:
            part.grow()
            digest = part.verified()
            part.rename(target)
            return digest
        except DamagedFile:
            part.drop()
            wrong += 1
            if wrong == _WHOLE_TRIES:
                raise
        except NothingThere as error:
            part.drop()
            wrong += 1
            if wrong == _WHOLE_TRIES:
                raise DamagedFile(
                    f"{file.url} is not as long as its server says ({error}): try another time"
                ) from error
        except PassingFault as error:
            link.connected |= error.connected
            has_grown = part.size > most
            failures, most = (0, part.size) if has_grown else (failures + 1, most)
            if not link.connected:
                raise Unreachable(f"{error}: check the network, or whether the address is right") from error
            if failures >= link.tries:
                raise _given_up(file, error, failures) from error
            if not has_grown:
                link.pause(failures, error.wait)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it. Raises ``DiskFault``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_fault(path, error) from error


def _given_up(file: RemoteFile, error: PassingFault, failures: int) -> Exception:
    kind = FileFault if error.connected else Unreachable
    return kind(
        f"{file.url} was tried {failures} times without success: {error}; the same command goes on where it stopped"
    )


class _Part:
    """The unfinished copy of a file, and beside it which version of the file its bytes belong to."""

    def __init__(self, path: Path, file: RemoteFile, link: Link):
        self._path, self._file, self._link = path, file, link
        self._note = path.with_name(path.name + ".json")
        self._total: int | None = file.size
        self._counted = 0  # bytes that the progress bar knows of
        self._hash: Any = None

    @property
    def size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def grow(self) -> None:
        """Fetches what is missing, as far as one connection goes."""
        if self._file.size is not None and self.size > self._file.size:
            self.drop()
        note = self._read_note()
        self._start_hash()
        if self._file.size is not None and self.size == self._file.size and self.size:
            return
        # With a checksum the bytes themselves tell whether the file has changed; a mirror's ETag need not be steady.
        version = "" if self._file.digest else note.get("version", "")
        if self.size and not (self._file.digest or version):
            self.drop()  # nothing could tell whether these bytes and those to come are of one file
            self._start_hash()
        try:
            with open_remote(self._file, self.size, version) as answer:
                self._link.connected = True
                self._accept(answer, note)
                self._copy(answer)
        except NothingThere as error:
            # All of it had arrived before its end was noticed.
            if self._file.size is not None or error.total != self.size:
                raise
            self._total = error.total
        if self._total is not None and self.size < self._total:
            raise PassingFault(f"the connection ended after {self.size:,} of {self._total:,} bytes")

    def _accept(self, answer: Answer, note: dict[str, Any]) -> None:
        if answer.start not in (0, self.size):
            raise PassingFault(f"bytes from {answer.start} were sent instead of from {self.size}")
        if answer.start and None not in (answer.total, note.get("total")) and note["total"] != answer.total:
            self.drop()
            raise PassingFault("the file has changed meanwhile")
        if answer.start != self.size:
            self.drop()  # the server cannot continue a file, or the file has changed
            self._start_hash()
        known = self._file.size
        if known is not None and answer.total is not None and answer.total != known:
            raise DamagedFile(
                f"{self._file.url} has {answer.total:,} bytes instead of {known:,}: it has changed, list it anew"
            )
        self._total = answer.total if known is None else known
        self._write_note({"file": self._identity, "version": answer.version, "total": answer.total})

    def _copy(self, answer: Answer) -> None:
        size = self.size
        with _writable(self._path) as sink:
            while chunk := answer.stream.read(_CHUNK):
                if self._link.stop.is_set():
                    raise Stopped
                _write(sink, chunk, self._path)
                self._hash.update(chunk)
                size += len(chunk)
                self._count(size)
                if self._total is not None and size > self._total:
                    raise DamagedFile(f"{self._file.url} sends more than its {self._total:,} bytes")

    def verified(self) -> str:
        """The checksum of what has arrived.

        Raises:
            DamagedFile: It is not the one that is known.
        """
        digest = f"{self._algorithm}:{self._hash.hexdigest()}"
        if self._file.digest and digest != self._file.digest:
            raise DamagedFile(
                f"{self._file.url} arrives with the wrong bytes ({digest} instead of {self._file.digest})"
            )
        return digest

    def rename(self, target: Path) -> None:
        try:
            self._path.touch()  # a file without a byte has not been opened
            move(self._path, target)
        except OSError as error:
            raise disk_fault(target, error) from error
        self._note.unlink(missing_ok=True)

    def drop(self) -> None:
        """Forgets all that has arrived."""
        self._path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self._hash = None
        self._count(0)

    def digest_of(self, path: Path) -> str:
        """The checksum of a file that was fetched before."""
        return f"{self._algorithm}:{_hash_of(path, self._algorithm).hexdigest()}"

    @property
    def _identity(self) -> str:
        return self._file.digest or self._file.url

    @property
    def _algorithm(self) -> str:
        return self._file.digest.partition(":")[0] or "sha256"

    def _start_hash(self) -> None:
        if self._hash is not None:
            return
        self._hash = _hash_of(self._path, self._algorithm)
        self._count(self.size)

    def _count(self, size: int) -> None:
        self._link.advance(size - self._counted)
        self._counted = size

    def _read_note(self) -> dict[str, Any]:
        """What the bytes so far belong to; without a word about that, or of another file, they are worth nothing."""
        try:
            note = json.loads(self._note.read_text())
        except (OSError, ValueError):
            note = {}
        if self.size and note.get("file") != self._identity:
            self.drop()
            return {}
        return note

    def _write_note(self, note: dict[str, Any]) -> None:
        try:
            draft = self._note.with_suffix(".new")
            draft.write_text(json.dumps(note))
            move(draft, self._note)
        except OSError as error:
            raise disk_fault(self._note, error) from error


def _hash_of(path: Path, algorithm: str) -> Any:
    made = hashlib.new(algorithm)
    if path.exists():
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                made.update(chunk)
    return made


def _writable(path: Path) -> Any:
    try:
        return open(path, "ab", buffering=0)
    except OSError as error:
        raise disk_fault(path, error) from error


def _write(sink: Any, chunk: bytes, path: Path) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[sink.write(view) :]
    except OSError as error:
        raise disk_fault(path, error) from error
