"""Records of a manifest, a table or a listing as recordings and their transcripts."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from flame.data.audio.decoding import AudioError
from flame.data.audio.recording import Part, Recording
from flame.data.sources.records import BadRow
from flame.errors import DataError, closest

AUDIO_COLUMNS = ("audio", "audio_filepath", "path", "file", "file_name")
TEXT_COLUMNS = ("text", "transcript", "sentence", "transcription")


class Columns(NamedTuple):
    """What the columns of a source are called, and whether they say more than where audio lies."""

    audio: str
    text: str
    """Empty if there are no transcripts."""
    segments: bool
    """Whether ``offset``, ``duration`` and the like mean seconds of the audio; they are a manifest's."""


def find_column(wanted: str, usual: Sequence[str], found: Sequence[str], where: str, key: str) -> str:
    """Finds a column by the name that the job gives it, or by the usual ones; empty if there is none of the usual.

    Args:
        wanted: The name that the job gives; may be empty.
        usual: Names it has often.
        found: The columns that there are.
        where: What has them, for messages.
        key: The job's key that names it.

    Raises:
        DataError: There is no column of the name that the job gives.
    """
    if wanted and wanted not in found:
        hint = closest(wanted, found)
        raise DataError(f"{where} has no column '{wanted}', only {', '.join(found)}: set {key}.{hint}")
    return wanted or next((column for column in usual if column in found), "")


def recording_of(record: dict[str, Any], columns: Columns, root: str, where: str) -> Recording:
    """Makes a recording of a record; no file is looked at.

    Args:
        record: Has the audio as a path, as ``{"bytes", "path"}``, or a list of paths or of records like this one.
        columns: What is where.
        root: The folder that paths are relative to.
        where: File and row, for messages.

    Raises:
        AudioError: It does not say where its audio is, or in a manner that cannot be understood.
    """
    if columns.audio not in record:
        names = ", ".join(map(str, record)) or "nothing"
        raise AudioError("missing column", where, f"no '{columns.audio}' among {names}")
    value = record[columns.audio]
    if not isinstance(value, list):
        return Recording((_part(value, record if columns.segments else {}, root, where),))
    parts = tuple(_inner_part(entry, columns, root, where) for entry in value)
    if not parts:
        raise AudioError("no audio", where, f"'{columns.audio}' is an empty list")
    return Recording(parts, _silences(record, len(parts) - 1, where))


def stated_seconds(record: dict[str, Any], columns: Columns) -> float | None:
    """How long a record's audio is by its own words; None if it does not say."""
    if not columns.segments:
        return None
    duration = record.get("duration")
    if not _is_number(duration) and _is_number(record.get("stop")):
        duration = record["stop"] - (_first(record, "offset", "start") or 0.0)
    return float(duration) if _is_number(duration) and duration > 0 else None  # type: ignore[arg-type]


def transcript_of(record: dict[str, Any], columns: Columns, where: str) -> str | BadRow:
    """The transcript as it was found; a bad row if there is none."""
    text = record.get(columns.text) if columns.text else None
    if text is None:
        return BadRow("empty transcript", where, f"no '{columns.text}'" if columns.text else "")
    if not isinstance(text, str):
        return BadRow("not a string", where, f"'{columns.text}' is {type(text).__name__}")
    if not text.strip():
        return BadRow("empty transcript", where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return BadRow("invalid UTF-8", where, str(error))
    return text


def _inner_part(entry: Any, columns: Columns, root: str, where: str) -> Part:
    """A part of a joined recording: a path, or an object like a manifest's line."""
    if isinstance(entry, dict) and not {"bytes", "path"} >= set(entry):
        name = next((name for name in (columns.audio, *AUDIO_COLUMNS) if name in entry), "")
        return _part(entry.get(name), entry, root, where)
    return _part(entry, {}, root, where)


def _part(value: Any, record: dict[str, Any], root: str, where: str) -> Part:
    data = None
    if isinstance(value, dict):
        data, value = value.get("bytes"), value.get("path")
        if isinstance(data, bytes):
            value = value or where
    if not isinstance(value, str) or not value or not (data is None or isinstance(data, bytes)):
        raise AudioError("no path of audio", where, f"it is {type(value).__name__}")
    path = value if data is not None else os.path.join(root, os.path.expanduser(value))
    start = _seconds(record, where, "offset", "start") or 0.0
    stop = _seconds(record, where, "stop")
    duration = _seconds(record, where, "duration")
    if stop is None and duration is not None and duration >= 0:  # NeMo writes -1 for all of a file
        stop = start + duration
    return Part(path, start, stop, data)


def _silences(record: dict[str, Any], gaps: int, where: str) -> tuple[float, ...]:
    value = record.get("silence", 0.0)
    silences = value if isinstance(value, list) else [value] * gaps
    if len(silences) != gaps or not all(_is_number(silence) and silence >= 0 for silence in silences):
        raise AudioError("wrong silence", where, f"{value!r} for {gaps + 1} parts: give seconds, or {gaps} of them")
    return tuple(map(float, silences))


def _seconds(record: dict[str, Any], where: str, *names: str) -> float | None:
    value = _first(record, *names)
    if value is not None and not _is_number(value):
        raise AudioError("not a number", where, f"'{names[0]}' is {value!r}")
    return None if value is None else float(value)


def _first(record: dict[str, Any], *names: str) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < float("inf")
