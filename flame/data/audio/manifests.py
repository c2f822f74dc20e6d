"""Manifests: files of JSON lines that say where recordings are, what is said in them and how long they are."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from flame.config.corpora import Source
from flame.data.audio.decoding import AudioError
from flame.data.audio.durations import file_seconds
from flame.data.audio.entries import (
    AUDIO_COLUMNS,
    TEXT_COLUMNS,
    Columns,
    find_column,
    recording_of,
    stated_seconds,
)
from flame.data.audio.recording import Recording
from flame.data.sources.files import find_files
from flame.data.sources.line_files import IndexedFile, LineFiles
from flame.data.sources.line_index import index_lines
from flame.data.sources.storage import LocalStorage
from flame.errors import DataError

_LONGEST_LINE = 1 << 20  # bytes; one that joins a thousand recordings is far shorter
_BLANK = (b"\n", b"\r\n", b"\r")


def manifest_source(config: Source) -> tuple[LineFiles, Columns, np.ndarray, list[tuple[int, str]]]:
    """Opens manifests.

    Returns:
        Their rows, what is where in them, float64 seconds by row, and the folders that paths are relative to, with the
        number of the first row of each.

    Raises:
        DataError: There are none, or they lack a column that the job names or that says where audio is.
    """
    files = [_indexed(file) for file in _files(config)]
    rows = LineFiles(config.path, files, is_json=True, max_document_bytes=_LONGEST_LINE)
    columns = _columns(config, list(rows.columns()))
    counts = [len(np.load(file.index, mmap_mode="r")) - 1 for file in files]
    firsts = [0, *np.cumsum(counts).tolist()][:-1]
    folders = [(first, os.path.dirname(os.path.abspath(file.path))) for first, file in zip(firsts, files, strict=True)]
    return rows, columns, _seconds(config.path, files, [folder for _, folder in folders], columns), folders


def _files(config: Source) -> list[Path]:
    split = Path(config.path).expanduser() / config.data_dir / f"{config.split}.jsonl"
    if split.is_file() and not config.data_files:
        return [split]
    if config.split != "train":
        raise DataError(f"'{config.path}' has no {split.name}: name the manifests of that split in path")
    return find_files(config.path, config.data_dir, config.data_files, "jsonl")[1]


def _indexed(file: Path) -> IndexedFile:
    plain, index = index_lines(file)
    info = LocalStorage().info(str(plain))
    assert info is not None
    return IndexedFile(str(file), info, index)


def _columns(config: Source, found: list[str]) -> Columns:
    if not found:  # no row could be read: the policy for bad rows decides
        return Columns(config.audio_column or AUDIO_COLUMNS[0], config.text_column or TEXT_COLUMNS[0], True)
    audio = find_column(config.audio_column, AUDIO_COLUMNS, found, config.path, "audio_column")
    text = find_column(config.text_column, TEXT_COLUMNS, found, config.path, "text_column")
    if not audio:
        raise DataError(
            f"{config.path} has none of the columns {', '.join(AUDIO_COLUMNS)}, only {', '.join(found)}: "
            "set audio_column to the one with the audio's path"
        )
    return Columns(audio, text, segments=True)


def _seconds(name: str, files: Sequence[IndexedFile], folders: Sequence[str], columns: Columns) -> np.ndarray:
    """Seconds by row: what the manifest says, else what the headers say."""
    stated: list[float] = []
    silent: dict[int, Recording] = {}  # rows that do not say how long they are
    for file, folder in zip(files, folders, strict=True):
        for record in _records(file):
            seconds = stated_seconds(record, columns)
            if seconds is None and record:
                with suppress(AudioError):  # it is a bad row when it is read
                    silent[len(stated)] = recording_of(record, columns, folder, file.path)
            stated.append(seconds or 0.0)
    if silent:
        paths = (part.path for recording in silent.values() for part in recording.parts)
        found = file_seconds(os.path.abspath(name), paths)
        for row, recording in silent.items():
            stated[row] = _by_files(recording, found)
    return np.array(stated, np.float64)


def _records(file: IndexedFile) -> Iterator[dict[str, Any]]:
    """The objects of a file in order, read in one go; an empty one for each that is none."""
    with open(file.plain.path, "rb") as lines:
        for line in lines:
            if line in _BLANK:
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield record if isinstance(record, dict) else {}


def _by_files(recording: Recording, found: dict[str, float]) -> float:
    """Seconds of a recording whose files are so long; 0 if one of them is not known."""
    total = sum(recording.silences)
    for part in recording.parts:
        if part.path not in found:
            return 0.0
        stop = found[part.path] if part.stop is None else min(part.stop, found[part.path])
        total += max(0.0, stop - part.start)
    return total
