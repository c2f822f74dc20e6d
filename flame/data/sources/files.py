"""Which files a local source consists of, and what format they have."""

import glob
from collections.abc import Sequence
from pathlib import Path

from flame.data import suffixes
from flame.data.shards.manifest import MANIFEST
from flame.errors import DataError, closest

SUFFIXES = {**suffixes.SUFFIXES, ".bin": "bin"}
FORMATS = ("parquet", "jsonl", "txt", "lines", "bin", "packed", "hub", "builtin")
_COMPRESSIBLE = ("jsonl", "lines")
_LIKE = {"lines": "txt", "packed": "parquet"}
"""Formats that files have by decree; their suffixes are those of others."""
_MAGIC = "*?["


def format_of(path: Path | str) -> str:
    """Returns the format that a file's suffix tells, or an empty string."""
    name = str(path)
    return suffixes.format_of(name.partition("?")[0] if is_remote(name) else name, SUFFIXES)


def is_remote(path: str) -> bool:
    """Whether a path is a URL, such as ``s3://bucket/corpus``."""
    return "://" in path and not path.startswith("file://")


def is_local(path: str) -> bool:
    """Whether a source's path names something of this machine rather than a hub dataset."""
    plain = Path(path).expanduser()
    looks_local = path.startswith(("/", ".", "~")) or has_magic(path) or path.count("/") > 1
    return looks_local or plain.exists() or bool(format_of(plain))


def find_files(path: str, data_dir: str, data_files: Sequence[str], wanted: str) -> tuple[str, list[Path]]:
    """Finds the files of a local source.

    Args:
        path: A file, a folder (searched to any depth) or a glob.
        data_dir: A folder inside ``path``.
        data_files: Files or globs inside that folder; empty for all.
        wanted: The format, or an empty string to tell it from the suffixes.

    Returns:
        The format, and the files sorted by name.

    Raises:
        DataError: If there are none, or files of several formats.
    """
    check_format(wanted)
    root = Path(path.removeprefix("file://")).expanduser() / data_dir
    patterns = [str(root / pattern) for pattern in data_files] or [str(root)]
    named: set[Path] = set()
    inside: set[Path] = set()
    for pattern in patterns:
        _expand(pattern, named, inside)
    found, names = choose_files([str(file) for file in named], [str(file) for file in inside], wanted, patterns)
    return found, sorted(map(Path, names))


def check_format(wanted: str) -> None:
    """Refuses a format that is none."""
    if wanted and wanted not in FORMATS:
        raise DataError(f"no data format '{wanted}': it is one of {', '.join(FORMATS)}.{closest(wanted, FORMATS)}")


def choose_files(
    named: Sequence[str], inside: Sequence[str], wanted: str, patterns: Sequence[str]
) -> tuple[str, list[str]]:
    """Tells the format of files that were found, and which of them have it.

    Args:
        named: Files that were named, or match a pattern.
        inside: Files in folders that were; those of no known format are left out.
        wanted: The format, or an empty string to tell it from the suffixes.
        patterns: What was looked for, for messages.

    Raises:
        DataError: If there are none, or files of several formats.
    """
    what = " ".join(patterns)
    if not wanted and any(name.rpartition("/")[2] == MANIFEST for name in inside):
        wanted = "bin"
    suffix = _LIKE.get(wanted, wanted)
    kinds = {name: format_of(name) for name in inside}
    files = {*named, *(name for name, kind in kinds.items() if kind and kind == (suffix or kind))}
    if not files:
        kind = f"{wanted} files" if wanted else f"files that end in {', '.join(SUFFIXES)}"
        raise DataError(f"no {kind} in '{what}': check data.sources path, data_files and format")
    formats = {wanted} if wanted else {format_of(file) for file in files}
    if "" in formats:
        unknown = next(file for file in sorted(files) if not format_of(file))
        raise DataError(f"cannot tell the format of {unknown} from its name: set format to one of {', '.join(FORMATS)}")
    if len(formats) > 1:
        raise DataError(f"'{what}' holds files of several formats ({', '.join(sorted(formats))}): set format to one")
    for file in files:
        if suffixes.is_compressed(file) and not formats <= set(_COMPRESSIBLE):
            raise DataError(f"{file}: only jsonl and lines files may be compressed, decompress it first")
    return formats.pop(), sorted(files)


def has_magic(pattern: str) -> bool:
    """Whether a path is a glob pattern."""
    return any(sign in pattern for sign in _MAGIC)


def _expand(pattern: str, named: set[Path], inside: set[Path]) -> None:
    path = Path(pattern)
    if path.is_file():
        named.add(path)
    elif path.is_dir():
        inside.update(file for file in path.rglob("*") if file.is_file())
    elif not has_magic(pattern):
        raise DataError(f"no file or folder '{pattern}': check data.sources path and data_files")
    else:
        found = [Path(name) for name in glob.glob(pattern, recursive=True)]
        named.update(file for file in found if file.is_file())
        for folder in found:
            if folder.is_dir():
                _expand(str(folder), named, inside)
