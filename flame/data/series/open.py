"""Opening a source of series: from what a job says about it to examples with random access."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flame.config.corpora import Source
from flame.data.series.arff_files import read_arff
from flame.data.series.cifar10 import is_cifar10, open_cifar10
from flame.data.series.converted import converted
from flame.data.series.digits import DIGITS, open_digits
from flame.data.series.files import UCR, check_series_format, find_series_files, info_of, series_format
from flame.data.series.hub import open_hub_series
from flame.data.series.mnist import is_mnist, open_mnist
from flame.data.series.npz_files import open_npz
from flame.data.series.source import SeriesPart, SeriesSource
from flame.data.series.table_files import read_csv, read_parquet
from flame.data.series.tables import Wanted
from flame.data.series.ts_files import read_ts
from flame.data.series.ucr_files import read_ucr
from flame.data.sources.files import has_magic, is_local, is_remote
from flame.data.sources.keys import refuse_other_keys
from flame.data.sources.seen import note_changes
from flame.data.sources.storage import FileInfo
from flame.data.sources.tables import is_saved_dataset
from flame.errors import DataError, closest

_FILES = {"data_dir", "data_files", "format"}
_COLUMNS = {"label_column", "value_columns"}
_USED = {
    "ts": (_FILES, ".ts files"),
    "arff": (_FILES, ".arff files"),
    UCR: (_FILES, "text files of the UCR archive"),
    "csv": (_FILES | _COLUMNS | {"series_column", "time_column"}, "csv files"),
    "parquet": (_FILES | _COLUMNS | {"series_column", "time_column"}, "parquet files"),
    "npz": (_FILES | _COLUMNS, ".npz files"),
    "mnist": ({"name", "format"}, "the files of MNIST"),
    "cifar10": ({"name", "format"}, "the files of CIFAR-10"),
    "builtin": ({"name", "format"}, "series that ship in a package"),
    "hub": ({"name"} | _FILES | _COLUMNS, "a hub dataset of series"),
    "saved": ({"format"} | _COLUMNS, "a saved dataset of series"),
}
"""The keys that have an effect, and what messages call such a source."""

_READERS = {"ts": read_ts, "arff": read_arff, UCR: read_ucr}


def open_series(config: Source, needs_labels: bool = True) -> SeriesSource:
    """Opens a source of series, so that what is wrong with it as a whole comes out before training.

    Args:
        config: What the job says about the source.
        needs_labels: Whether a series without a label, where others have one, is a bad row; else its label is None.

    Returns:
        Its series; see ``SeriesSource``.

    Raises:
        DataError: It does not exist, is damaged, lacks a column or a split, or holds no series that can be used.
        ConfigError: A package is missing.
    """
    if not config.path:
        raise DataError(f"a data source has no path: name a file, a folder, a hub dataset or {DIGITS}")
    check_series_format(config.format)
    if config.streaming:
        raise DataError(f"'{config.path}': series are read from this machine: set streaming = false")
    return SeriesSource(config.path, _parts(config), needs_labels)


def _parts(config: Source) -> Sequence[SeriesPart]:
    if config.path.startswith("builtin:") or config.format == "builtin":
        _refuse_unused(config, "builtin", "builtin")
        if config.path.removeprefix("builtin:") != DIGITS.removeprefix("builtin:"):
            raise DataError(f"no series '{config.path}': there is {DIGITS}.{closest(config.path, [DIGITS])}")
        return open_digits(config)
    if is_remote(config.path):
        raise DataError(f"'{config.path}': series are read from this machine: download it and name the folder")
    path = Path(config.path.removeprefix("file://")).expanduser()
    if config.format == "mnist" or (not config.format and path.is_dir() and is_mnist(path)):
        _refuse_unused(config, "mnist", "mnist")
        return open_mnist(config)
    if config.format == "cifar10" or (not config.format and path.exists() and is_cifar10(path)):
        _refuse_unused(config, "cifar10", "cifar10")
        return open_cifar10(config)
    if path.is_dir() and is_saved_dataset(path):
        _refuse_unused(config, "saved", "hub")
        return open_hub_series(config)
    if config.format == "hub" or not (path.exists() or has_magic(config.path) or _is_file_name(config.path)):
        _refuse_unused(config, "hub", "hub")
        return open_hub_series(config)
    return _open_files(config)


def _is_file_name(path: str) -> bool:
    return is_local(path) or bool(series_format(path))


def _open_files(config: Source) -> list[SeriesPart]:
    kind, files = find_series_files(config)
    used, called = _USED[kind]
    refuse_other_keys(config, used, called)
    infos = [info_of(str(file)) for file in files]
    note_changes(config, infos)
    if kind == "npz":
        return [open_npz(info, config) for info in infos]
    return [_converted(info, kind, config) for info in infos]


def _converted(file: FileInfo, kind: str, config: Source) -> SeriesPart:
    if kind in _READERS:
        return converted(file, kind, _READERS[kind])
    wanted = Wanted.of(config)
    read = read_csv if kind == "csv" else read_parquet
    return converted(file, f"{kind} {wanted!r}", partial(read, wanted=wanted))


def _refuse_unused(config: Source, kind: str, wanted: str) -> None:
    used, called = _USED[kind]
    refuse_other_keys(config, used, called)
    if config.format not in ("", wanted):
        raise DataError(f"'{config.path}': format = '{config.format}' has no effect on {called}; take it out")
