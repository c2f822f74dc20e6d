"""Which files a local source consists of, and what format they have."""

import glob
from collections.abc import Sequence
from pathlib import Path

from flame.errors import DataError, closest

SUFFIXES = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "txt",
    ".text": "txt",
}
FORMATS = ("parquet", "jsonl", "txt", "lines", "hub", "builtin")
_COMPRESSED = (".gz", ".zst")
_COMPRESSIBLE = ("jsonl", "lines")
_MAGIC = "*?["


def format_of(path: Path) -> str:
    """Returns the format that a file's suffix tells, or an empty string."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1], "") if suffixes else ""


def is_local(path: str) -> bool:
    """Whether a source's path names something of this machine rather than a hub dataset."""
    plain = Path(path).expanduser()
    looks_local = path.startswith(("/", ".", "~")) or any(sign in path for sign in _MAGIC) or path.count("/") > 1
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
    if wanted and wanted not in FORMATS:
        raise DataError(f"no data format '{wanted}': it is one of {', '.join(FORMATS)}.{closest(wanted, FORMATS)}")
    root = Path(path).expanduser() / data_dir
    patterns = [str(root / pattern) for pattern in data_files] or [str(root)]
    files = sorted({file for pattern in patterns for file in _expand(pattern, wanted)})
    if not files:
        what = f"{wanted} files" if wanted else f"files that end in {', '.join(SUFFIXES)}"
        raise DataError(f"no {what} in '{' '.join(patterns)}': check data.sources path, data_files and format")
    formats = {wanted} if wanted else {format_of(file) for file in files}
    if "" in formats:
        unknown = next(file for file in files if not format_of(file))
        raise DataError(f"cannot tell the format of {unknown} from its name: set format to one of {', '.join(FORMATS)}")
    if len(formats) > 1:
        raise DataError(f"'{path}' holds files of several formats ({', '.join(sorted(formats))}): set format to one")
    for file in files:
        if file.suffix.lower() in _COMPRESSED and not formats <= set(_COMPRESSIBLE):
            raise DataError(f"{file}: only jsonl and lines files may be compressed, decompress it first")
    return formats.pop(), files


def _expand(pattern: str, wanted: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file() and _matches(file, wanted)]
    if not any(sign in pattern for sign in _MAGIC):
        raise DataError(f"no file or folder '{pattern}': check data.sources path and data_files")
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]
    inside = [file for folder in found if folder.is_dir() for file in _expand(str(folder), wanted)]
    return [file for file in found if file.is_file()] + inside


def _matches(file: Path, wanted: str) -> bool:
    """Whether a file found in a folder belongs to the source: of the wanted format, or of any known one."""
    found = format_of(file)
    return found == (wanted.replace("lines", "txt") or found) and bool(found)
