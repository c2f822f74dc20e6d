"""What can go wrong with a download, by what is to be done about it."""

from flame.errors import DataError


class FileFault(DataError):
    """One file cannot be had, whatever is tried; the others may."""


class DamagedFile(FileFault):
    """The bytes of a file are not what they should be: fetched again, they may be."""


class Unreachable(DataError):
    """No connection: the other files would fare no better."""


class DiskFault(DataError):
    """Nothing more can be written."""


def disk_fault(path: object, error: OSError) -> DiskFault:
    """What to say when ``path`` cannot be written."""
    return DiskFault(
        f"cannot write {path} ({error.strerror or error}): make room or name another folder with --out; the same "
        "command goes on where it stopped"
    )
