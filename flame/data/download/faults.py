"""What can go wrong with a download, by what is to be done about it."""

import errno

from flame.errors import DataError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG)


class FileFault(DataError):
    """One file cannot be had, whatever is tried; the others may."""


class DamagedFile(FileFault):
    """The bytes of a file are not what they should be: fetched again, they may be."""


class Unreachable(DataError):
    """No connection: the other files would fare no better."""


class DiskFault(DataError):
    """Nothing more can be written."""


def disk_fault(path: object, error: OSError) -> DiskFault | FileFault:
    """What to say when ``path`` cannot be written: it may be the disk's fault, or that of this one name."""
    if error.errno not in _DISK:
        where = error.filename or path
        return FileFault(f"cannot write {where} ({error.strerror or error}): leave this file out, or try another --out")
    return DiskFault(
        f"cannot write {path} ({error.strerror or error}): make room or name another folder with --out; the same "
        "command goes on where it stopped"
    )
