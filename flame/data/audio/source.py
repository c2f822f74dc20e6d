"""Opening sources of recordings: manifests, the layouts of speech corpora, and hub datasets."""

from pathlib import Path
from typing import Any

import numpy as np

from flame.config.corpora import AUDIO_FORMATS, Source
from flame.data.audio import layouts
from flame.data.audio.audio_source import AudioSource as AudioSource
from flame.data.audio.durations import file_seconds
from flame.data.audio.entries import Columns
from flame.data.audio.manifests import manifest_source
from flame.data.audio.rows import ListedRows
from flame.data.audio.tables import table_source
from flame.data.sources.files import format_of, is_local, is_remote
from flame.data.sources.keys import refuse_other_keys
from flame.data.sources.tables import is_saved_dataset
from flame.errors import DataError, closest

_COLUMNS = {"audio_column", "text_column"}
_USED = {
    "jsonl": {"format", "data_dir", "data_files"} | _COLUMNS,
    "librispeech": {"format"},
    "common_voice": {"format"} | _COLUMNS,
    "folder": {"format"},
    "hub": {"format", "name", "data_dir", "data_files"} | _COLUMNS,
}
_CALLED = {
    "jsonl": "manifests of recordings",
    "librispeech": "recordings in LibriSpeech's layout",
    "common_voice": "recordings in Common Voice's layout",
    "folder": "a folder of recordings",
    "hub": "a dataset of recordings",
}


def open_audio(config: Source, *, text_required: bool = True) -> AudioSource:
    """Opens a source of recordings, so that what is wrong with it as a whole comes out before training.

    Args:
        config: What the job says about the source.
        text_required: Whether a row without a transcript is a bad one, or has an empty text.

    Raises:
        DataError: It does not exist, is damaged, lacks a column, holds no recordings, or a key that is set has no
            effect on it.
    """
    kind = audio_format(config)
    refuse_other_keys(config, _USED[kind], _CALLED[kind])
    if config.streaming:
        raise DataError(f"'{config.path}': streaming = true has no effect on recordings; take it out")
    if kind == "jsonl":
        rows, columns, seconds, folders = manifest_source(config)
    elif kind == "hub":
        (rows, columns, seconds), folders = table_source(config), [(0, "")]
    else:
        rows, columns, seconds, folders = _listed(config, kind)
    if not len(rows):
        raise DataError(f"'{config.path}' holds no recordings: check data.sources path and split")
    if text_required and not columns.text:
        raise DataError(f"'{config.path}' has no column of transcripts: set text_column to one")
    return AudioSource(config.path, rows, columns, seconds, folders, text_required)


def audio_format(config: Source) -> str:
    """The layout of a source: what the job says, or what the path tells.

    Raises:
        DataError: There is nothing there, or nothing that is known.
    """
    path = config.path
    if not path:
        raise DataError("a data source has no path: name a manifest, a folder of recordings or a hub dataset")
    if config.format and config.format not in AUDIO_FORMATS:
        known = ", ".join(filter(None, AUDIO_FORMATS))
        hint = closest(config.format, AUDIO_FORMATS)
        raise DataError(f"no format '{config.format}' of recordings: it is one of {known}.{hint}")
    if is_remote(path):
        raise DataError(f"'{path}': recordings are read from this machine: fetch them, and name their folder")
    if config.format:
        return config.format
    if format_of(path) == "jsonl":
        return "jsonl"
    if path.endswith(".tsv"):
        return "common_voice"
    folder = Path(path.removeprefix("file://")).expanduser()
    if not is_local(path) or path.endswith(".parquet"):
        return "hub"
    if folder.is_file() and path.lower().endswith(layouts.SUFFIXES):
        raise DataError(f"'{path}' is a single recording: name a folder of them, or a manifest")
    if not folder.is_dir():
        raise DataError(f"no file or folder '{path}' of recordings: check data.sources path and format")
    return _format_of_folder(folder, config)


def _format_of_folder(folder: Path, config: Source) -> str:
    named = format_of(config.data_files[0]) if config.data_files else ""
    if is_saved_dataset(folder) or named == "parquet":
        return "hub"
    if named == "jsonl" or (folder / f"{config.split}.jsonl").is_file():
        return "jsonl"
    if (folder / "clips").is_dir() and any(folder.glob("*.tsv")):
        return "common_voice"
    if layouts.is_librispeech(folder):
        return "librispeech"
    if layouts.find_audio(folder):
        return "folder"
    for pattern, kind in (("*.jsonl*", "jsonl"), ("*.parquet", "hub")):
        if any(folder.rglob(pattern)):
            return kind
    raise DataError(f"'{config.path}' holds no recordings, manifests or tables: check data.sources path and format")


def _listed(config: Source, kind: str) -> tuple[ListedRows, Columns, np.ndarray, list[tuple[int, str]]]:
    if kind == "folder" and config.split != "train":
        raise DataError(f"'{config.path}' is a folder and has no split '{config.split}': name that split's folder")
    lister: dict[str, Any] = {
        "librispeech": layouts.librispeech,
        "common_voice": layouts.common_voice,
        "folder": layouts.folder_of_files,
    }
    rows: ListedRows = lister[kind](config)
    unknown = [path for path, seconds in zip(rows.paths(), rows.seconds, strict=True) if seconds is None]
    found = file_seconds(str(Path(config.path).expanduser().resolve()), unknown)
    each = zip(rows.paths(), rows.seconds, strict=True)
    seconds = [found.get(path, 0.0) if stated is None else stated for path, stated in each]
    return rows, Columns("audio", "text", segments=False), np.array(seconds, np.float64), [(0, "")]
