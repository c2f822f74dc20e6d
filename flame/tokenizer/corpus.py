"""The built-in corpora: text that every machine which can run flame already has.

``python-stdlib`` is the source code of the Python standard library, about 11 MB in 600 files, without its tests (some
systems leave them out) and generated tables.
"""

import sysconfig
import zlib
from pathlib import Path

from flame.errors import DataError, closest

CORPORA = ("python-stdlib",)
SPLITS = ("train", "validation")
_FOREIGN_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}
_TESTS_AND_TABLES = {"test", "tests", "idle_test", "encodings", "pydoc_data"}
_LEFT_OUT = _FOREIGN_FOLDERS | _TESTS_AND_TABLES
_VALIDATION_SHARE = 50  # one file in this many is held out


def corpus_files(name: str, split: str) -> list[Path]:
    """Lists the files of a built-in corpus; each holds valid UTF-8 and is not empty.

    Args:
        name: The corpus, without ``builtin:``.
        split: ``train``, or ``validation`` for the files (about 2%) that a stable hash of their name holds out.

    Returns:
        The files, sorted by name.

    Raises:
        DataError: If there is no such corpus or split, or this Python has no source files.
    """
    if name not in CORPORA:
        raise DataError(f"no built-in corpus '{name}': it is one of {', '.join(CORPORA)}.{closest(name, CORPORA)}")
    if split not in SPLITS:
        raise DataError(
            f"builtin:{name} has no split '{split}': it is one of {', '.join(SPLITS)}.{closest(split, SPLITS)}"
        )
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    files = [
        root / path
        for path in paths
        if _LEFT_OUT.isdisjoint(path.parts) and _is_held_out(path) == (split == "validation")
    ]
    files = [path for path in files if _holds_text(path)]
    if not files:
        raise DataError(f"builtin:{name} found no source files below {root}: name a corpus of your own")
    return files


def _is_held_out(path: Path) -> bool:
    return zlib.crc32(path.as_posix().encode()) % _VALIDATION_SHARE == 0


def _holds_text(path: Path) -> bool:
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except (UnicodeDecodeError, OSError):
        return False
