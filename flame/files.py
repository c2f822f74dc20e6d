"""Files and folders that appear under their name only when they are whole, whenever a process is killed."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from flame.errors import DataError

DRAFTS = ".*.tmp"
"""Pattern of the paths that ``beside`` gives; those of killed processes stay behind."""


class Draft:
    """A file that is written beside its place and moved there at the end; a context manager.

    Leaving the context by an error removes the draft. A killed process leaves ``.NAME.draft`` behind, which the next
    draft of that name overwrites and which nobody takes for the file.

    Raises:
        DataError: The file cannot be written, such as on a full disk.
    """

    def __init__(self, target: Path):
        self.target = target
        self._draft = target.with_name(f".{target.name}.draft")
        with _explained(self.target):
            self._file = open(self._draft, "wb", buffering=1 << 20)  # noqa: SIM115  (closed by commit and discard)

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        with _explained(self.target):
            self._file.write(data)

    def commit(self) -> None:
        """Makes the file last, under its name."""
        with _explained(self.target):
            self._file.close()
            move(self._draft, self.target)

    def discard(self) -> None:
        """Removes what was written; safe to call at any time but after ``commit``."""
        with suppress(OSError):  # closing writes what is buffered, for which there may be no room
            self._file.close()
        self._draft.unlink(missing_ok=True)

    def __enter__(self) -> "Draft":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.commit()
        except DataError:
            self.discard()
            raise


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Gives a path beside ``target`` that is nobody else's; the file written there takes its name at the end.

    Raises:
        OSError: The file cannot be made to last, such as on a full disk; then nothing is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = beside(target)
    try:
        yield draft
        move(draft, target)
    finally:
        remove(draft)


def beside(target: Path) -> Path:
    """A hidden path in the folder of ``target`` that no other process or thread is given."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")


def move(draft: Path, target: Path) -> None:
    """Gives a finished file its name, in place of any older one, so that both its bytes and its name last.

    Raises:
        OSError: That failed.
    """
    sync(draft)
    os.replace(draft, target)
    sync(target.parent)


def replace_folder(draft: Path, target: Path, aside: Path) -> None:
    """Gives a finished folder its name; an older one is first set aside, and removed at last.

    Args:
        draft: The folder.
        target: What it is to be called.
        aside: Where the older one goes meanwhile: on the same file system, and not there yet.

    Raises:
        OSError: That failed; then the older folder is where it was.
    """
    existed = target.exists()
    if existed:
        os.rename(target, aside)
    try:
        os.rename(draft, target)
    except OSError:
        if existed:
            os.rename(aside, target)
        raise
    sync(target.parent)
    remove(aside)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turns an ``OSError`` of writing a file into one line with what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {target} ({error.strerror or error}): choose a writable folder with room on its disk"
        ) from error
