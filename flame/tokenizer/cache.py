"""Things made once per machine and kept: tokenizers, line indexes, decompressed files.

They live under ``$FLAME_CACHE`` (default ``~/.cache/flame``) and may be deleted at any time.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from flame.errors import DataError
from flame.files import beside, remove


def cache_folder() -> Path:
    """Returns the root of flame's cache: ``$FLAME_CACHE``, or ``~/.cache/flame``."""
    return Path(os.environ.get("FLAME_CACHE") or Path.home() / ".cache" / "flame")


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Returns ``target``, having it built first if it does not exist yet.

    Several processes may ask at once: one builds while the others wait. The file or folder is built beside its
    place and renamed into it, so what exists is complete.

    Args:
        target: The file or folder wanted.
        build: Writes the file or folder at the path that it is given.

    Raises:
        DataError: If the cache cannot be written, or what goes into it not be read.
    """
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.parent / f".{target.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _build_beside(target, build)
    except OSError as error:
        raise DataError(
            f"cannot make {target} ({error}): name a writable folder with room on its disk in FLAME_CACHE"
        ) from error
    return target


def _build_beside(target: Path, build: Callable[[Path], None]) -> None:
    draft = beside(target)
    try:
        build(draft)
        try:
            os.rename(draft, target)
        except OSError:
            # A machine that does not share our lock (network file systems) may have been faster.
            if not target.exists():
                raise
    finally:
        remove(draft)
