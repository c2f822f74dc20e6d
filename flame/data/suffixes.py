"""What the name of a file says: how it is compressed, and what it holds."""

from collections.abc import Mapping
from pathlib import PurePosixPath

COMPRESSED = (".gz", ".zst")
SUFFIXES = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "txt",
    ".text": "txt",
}
"""Formats that every command reads, by suffix; some read more."""


def is_compressed(name: str) -> bool:
    """Whether a file has to be decompressed before it can be read."""
    return name.lower().endswith(COMPRESSED)


def format_of(name: str, suffixes: Mapping[str, str] = SUFFIXES) -> str:
    """The format in ``suffixes`` that a file's name tells, or an empty string."""
    return suffixes.get(PurePosixPath(_plain(name)).suffix.lower(), "")


def stem_of(name: str, suffixes: Mapping[str, str] = SUFFIXES) -> str:
    """A file's name without what it says of compression and format: ``a.b.jsonl.gz`` -> ``a.b``."""
    plain = _plain(name)
    return PurePosixPath(plain).stem if format_of(name, suffixes) else plain


def _plain(name: str) -> str:
    name = PurePosixPath(name).name
    return PurePosixPath(name).stem if is_compressed(name) else name
