"""Which files a source of series consists of, and what format they have."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from flame.config.corpora import SERIES_FORMATS, Source
from flame.data.series.ucr_files import is_ucr_file
from flame.data.sources.files import has_magic
from flame.data.sources.storage import FileInfo, LocalStorage
from flame.data.suffixes import COMPRESSED, format_of, is_compressed
from flame.errors import DataError, closest

SUFFIXES = {".ts": "ts", ".arff": "arff", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".npz": "npz"}
UCR = "ucr"
"""The text files of the UCR archive; in a job they are ``csv``."""

_PREFERRED = ("ts", "arff", UCR, "csv", "parquet", "npz")
"""Where a folder has the same data in several formats, as folders of the archives do, the first is read."""

_SPLIT = re.compile(r"(?P<name>.*?)_?(?P<split>train|test|validation|valid|val|dev|eval)", re.IGNORECASE)
_COMPRESSIBLE = ("ts", "arff", UCR, "csv")


def check_series_format(wanted: str) -> None:
    """Refuses a format that no series have.

    Raises:
        DataError: It is none.
    """
    if wanted not in SERIES_FORMATS:
        known = [name for name in SERIES_FORMATS if name]
        raise DataError(f"no format '{wanted}' of series: it is one of {', '.join(known)}.{closest(wanted, known)}")


def series_format(path: Path | str) -> str:
    """The format that a file's name tells, or an empty string."""
    name = Path(path).name
    plain = name.removesuffix(next((suffix for suffix in COMPRESSED if name.endswith(suffix)), ""))
    return UCR if is_ucr_file(plain) else format_of(name, SUFFIXES)


def info_of(path: str) -> FileInfo:
    """Size and version of a file.

    Raises:
        DataError: It is not there.
    """
    info = LocalStorage().info(path)
    if info is None:
        raise DataError(f"no file '{path}': check data.sources path")
    return info


def find_series_files(config: Source) -> tuple[str, list[Path]]:
    """Finds the files of a local source.

    Files that are named, or match a pattern, are all read. Of those in a folder, it is those of the split if their
    names tell one (``GunPoint_TRAIN.ts``, ``test.csv``), else all.

    Args:
        config: What the job says about the source.

    Returns:
        The format (``ucr`` for text files of that archive), and the files sorted by name.

    Raises:
        DataError: There are none, or none of the split, or they are of several formats or data sets.
    """
    root = Path(config.path.removeprefix("file://")).expanduser() / config.data_dir
    patterns = [str(root / pattern) for pattern in config.data_files] or [str(root)]
    if len(patterns) == 1 and Path(patterns[0]).is_dir():
        return _in_folder(Path(patterns[0]), config)
    if config.split != "train" and not config.format == "npz" and series_format(patterns[0]) != "npz":
        raise DataError(
            f"'{config.path}': split = '{config.split}' has no effect on files that are named: name those of that split"
        )
    files = sorted({file for pattern in patterns for file in _matches(pattern)})
    kinds = {_format(file, config.format) for file in files}
    if "" in kinds:
        unknown = next(file for file in files if not _format(file, config.format))
        known = ", ".join(SUFFIXES)
        raise DataError(
            f"cannot tell the format of {unknown} from its name: set format, or let it end in one of {known}"
        )
    if len(kinds) > 1:
        raise DataError(
            f"'{config.path}' holds files of several formats ({', '.join(sorted(kinds))}): set format to one"
        )
    kind = kinds.pop()
    _refuse_compressed(files, kind)
    return kind, files


def _in_folder(folder: Path, config: Source) -> tuple[str, list[Path]]:
    by_format: dict[str, list[Path]] = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        kind = series_format(file)
        if kind and (not config.format or config.format == kind or (config.format == "csv" and kind == UCR)):
            by_format.setdefault(kind, []).append(file)
    if not by_format:
        what = f"{config.format} files" if config.format else f"files that end in {', '.join(SUFFIXES)}"
        raise DataError(f"no {what} in '{folder}': check data.sources path and format")
    kind = next(kind for kind in _PREFERRED if kind in by_format)
    files = by_format[kind] if kind == "npz" else _of_split(folder, by_format[kind], config)
    _refuse_compressed(files, kind)
    return kind, files


def _of_split(folder: Path, files: list[Path], config: Source) -> list[Path]:
    splits: dict[str, dict[str, list[Path]]] = {}  # by split: by data set
    for file in files:
        match = _SPLIT.fullmatch(_stem(file))
        if match:
            splits.setdefault(match["split"].lower(), {}).setdefault(match["name"], []).append(file)
    if not splits and config.split == "train":
        return files
    if config.split.lower() not in splits:
        told = f"it has {', '.join(sorted(splits))}" if splits else "no file's name ends in it, as in NAME_TEST.ts"
        raise DataError(f"'{folder}' has no split '{config.split}': {told}")
    sets = splits[config.split.lower()]
    if len(sets) == 1:
        return next(iter(sets.values()))
    if folder.resolve().name in sets:
        return sets[folder.resolve().name]
    raise DataError(
        f"'{folder}' holds several data sets ({', '.join(sorted(sets))}): name the folder of one, or its files in "
        "data_files"
    )


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        return [file for file in path.rglob("*") if series_format(file) and file.is_file()]
    found = [Path(name) for name in glob.glob(pattern, recursive=True)] if has_magic(pattern) else []
    files = [file for file in found if file.is_file()]
    if not files:
        raise DataError(f"no file or folder '{pattern}': check data.sources path and data_files")
    return files


def _format(file: Path, wanted: str) -> str:
    told = series_format(file)
    return UCR if told == UCR and wanted in ("", "csv") else wanted or told


def _refuse_compressed(files: Sequence[Path], kind: str) -> None:
    odd = next((file for file in files if is_compressed(file.name)), None)
    if odd is not None and kind not in _COMPRESSIBLE:
        raise DataError(f"{odd}: only ts, arff and csv files may be compressed, decompress it first")


def _stem(file: Path) -> str:
    name = file.name
    for suffix in (*COMPRESSED, *SUFFIXES, ".txt"):
        name = name.removesuffix(suffix)
    return name
