"""Files that appear under their name only when they are whole and on the disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from flame.errors import DataError


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
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._draft, self.target)
            _sync_folder(self.target.parent)

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
def _explained(target: Path) -> Iterator[None]:
    """Turns an ``OSError`` of writing a file into one line with what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {target} ({error.strerror or error}): choose a writable folder with room on its disk"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Makes names last: a rename is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
