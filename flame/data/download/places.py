"""Where files end up in the folder of a download."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from flame.data.download.documents import FORMATS, check_format
from flame.data.download.registry import Corpus
from flame.data.download.remote import RemoteFile
from flame.data.suffixes import stem_of
from flame.errors import DataError

_LONGEST = 240  # bytes of a name: disks know 255, and files under way are called NAME.part.json


def place_of(file: RemoteFile, kind: str) -> str:
    """The parquet file, or the folder, that a file of some format becomes: ``train/00.parquet``."""
    name = stem_of(file.name, FORMATS).removesuffix(".warc")
    return str(PurePosixPath(file.split, file.path).with_name(name if kind == "archive" else f"{name}.parquet"))


def check_places(corpus: Corpus, files: Sequence[RemoteFile]) -> None:
    """Finds out beforehand what would go wrong with names and formats.

    Raises:
        DataError: A file's format is unknown, its path leads out of the folder, or two files end up in one place.
        ConfigError: A package is missing that reads them.
    """
    taken: dict[str, RemoteFile] = {}
    for file in files:
        parts = PurePosixPath(file.path).parts
        if not parts or file.path.startswith("/") or any(part.startswith(".") for part in parts):
            raise DataError(f"{file.url}: '{file.path}' is no place for a file")
        if any(len(part.encode()) > _LONGEST for part in parts):
            raise DataError(f"{file.url}: '{file.path}' has a name of more than {_LONGEST} bytes, leave the file out")
        place = place_of(file, check_format(file.name, corpus))
        other = taken.setdefault(place, file)
        if other is not file:
            raise DataError(f"{file.url} and {other.url} would both be '{place}': leave one out of the registry")
