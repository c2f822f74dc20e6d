"""Layouts of speech corpora on disk, listed as rows: LibriSpeech, Common Voice, folders of files with transcripts."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from flame.data.audio.rows import ListedRows
from flame.data.sources.columns import SourceConfig
from flame.errors import DataError, closest

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aif", ".aiff", ".au", ".w64")
_TRANSCRIPT_SUFFIXES = (".txt", ".lab")
_TRANSCRIPT_FILES = ("metadata.csv", "transcripts.txt")
_LIBRISPEECH = ".trans.txt"

Row = tuple[str, str]  # the path of an audio file, and its transcript; empty if it has none


def find_audio(folder: Path) -> list[str]:
    """The audio files in a folder, at any depth, sorted."""
    return sorted(path for path in _walk(folder) if path.lower().endswith(SUFFIXES))


def is_librispeech(folder: Path) -> bool:
    """Whether there are transcripts in LibriSpeech's manner; only the first branches of a large tree are looked at."""
    return any(path.endswith(_LIBRISPEECH) for path, _ in zip(_walk(folder), range(10_000), strict=False))


def librispeech(config: SourceConfig) -> ListedRows:
    """Lists ``SPEAKER/CHAPTER/*.trans.txt`` with their ``.flac`` files; ``split`` may name a subfolder.

    Raises:
        DataError: There is no such folder, or no transcript in it.
    """
    folder = _folder(config.path)
    if (folder / config.split).is_dir():
        folder = folder / config.split
    elif config.split != "train":
        raise DataError(f"'{config.path}' has no folder '{config.split}': set split to one of its folders")
    rows: list[Row] = []
    for transcripts in sorted(path for path in _walk(folder) if path.endswith(_LIBRISPEECH)):
        present = set(os.listdir(os.path.dirname(transcripts)))
        for line in _lines(transcripts):
            name, _, text = line.strip().partition(" ")
            file = next((name + suffix for suffix in (".flac", *SUFFIXES) if name + suffix in present), f"{name}.flac")
            rows.append((os.path.join(os.path.dirname(transcripts), file), text))
    if not rows:
        raise DataError(f"no *{_LIBRISPEECH} in '{folder}': name LibriSpeech's folder, or one of its splits")
    return ListedRows(config.path, rows)


def common_voice(config: SourceConfig) -> ListedRows:
    """Lists the rows of ``SPLIT.tsv``, whose files are in ``clips`` beside it.

    Raises:
        DataError: There is no such table, or it lacks a column.
    """
    table = Path(config.path).expanduser()
    if table.is_dir():
        splits = sorted(path.stem for path in table.glob("*.tsv"))
        table = table / f"{config.split}.tsv"
        if not table.is_file():
            hint = closest(config.split, splits)
            raise DataError(f"'{config.path}' has no {table.name}, only {', '.join(splits)}: set split.{hint}")
    audio, text = getattr(config, "audio_column", "") or "path", config.text_column or "sentence"
    rows: list[Row] = []
    for record in _table(table, "\t", audio, text):
        name = record[audio] or ""
        name = name if name.lower().endswith(SUFFIXES) else f"{name}.mp3"  # the first releases left it out
        rows.append((str(table.parent / "clips" / name), record[text] or ""))
    return ListedRows(config.path, rows, _clip_seconds(table.with_name("clip_durations.tsv"), rows))


def folder_of_files(config: SourceConfig) -> ListedRows:
    """Lists the audio files of a folder.

    Transcripts are in ``metadata.csv`` or ``transcripts.txt``, else in a ``.txt`` or ``.lab`` file beside each audio
    file; one without has an empty transcript.

    Raises:
        DataError: There is no such folder, no audio in it, or no file of a name in its table.
    """
    folder = _folder(config.path)
    files = find_audio(folder)
    if not files:
        raise DataError(f"no audio in '{config.path}': it has no files that end in {', '.join(SUFFIXES)}")
    table = next((folder / name for name in _TRANSCRIPT_FILES if (folder / name).is_file()), None)
    if table is not None:
        return ListedRows(config.path, _tabled(folder, table, files))
    return ListedRows(config.path, [(file, _transcript_beside(file)) for file in files])


def _tabled(folder: Path, table: Path, files: list[str]) -> list[Row]:
    """Rows of ``file_name,text`` with a header, of LJSpeech's ``id|text|...``, or of ``file<TAB>text``."""
    by_path = dict(zip(files, files, strict=True))
    by_stem = {os.path.splitext(os.path.basename(file))[0]: file for file in files}
    rows: list[Row] = []
    for name, text in _pairs(table):
        path = os.path.join(folder, name)
        stem = os.path.basename(name)
        # An id may have dots in it, a name its suffix.
        known = by_path.get(path) or by_stem.get(stem) or by_stem.get(os.path.splitext(stem)[0])
        rows.append((known or path, text))
    if not rows:
        raise DataError(f"{table} holds no rows: write a file's name, a tab or '|', and its text")
    return rows


def _pairs(table: Path) -> Iterator[tuple[str, str]]:
    lines = _lines(str(table))
    first = next(iter(lines), "")
    if "file_name" in first.split(","):
        header = first.strip().split(",")
        text = next((column for column in ("transcription", "text", "sentence") if column in header), header[-1])
        yield from ((record["file_name"] or "", record[text] or "") for record in _table(table, ",", "file_name", text))
        return
    sign = "|" if "|" in first else "\t"
    for line in lines:
        name, _, rest = line.rstrip("\r\n").partition(sign)
        if name.strip():
            yield name.strip(), rest.split(sign)[0]


def _transcript_beside(file: str) -> str:
    stem = os.path.splitext(file)[0]
    for suffix in _TRANSCRIPT_SUFFIXES:
        if os.path.isfile(stem + suffix):
            return " ".join("".join(_lines(stem + suffix)).split())
    return ""


def _clip_seconds(table: Path, rows: list[Row]) -> list[float | None]:
    """Seconds of Common Voice's clips, where a release says so (in milliseconds)."""
    if not table.is_file():
        return [None] * len(rows)
    known: dict[str, float] = {}
    for line in _lines(str(table))[1:]:
        clip, _, milliseconds = line.strip().partition("\t")
        if milliseconds.isdigit():
            known[clip] = int(milliseconds) / 1000
    return [known.get(os.path.basename(path)) for path, _ in rows]


def _table(path: Path, sign: str, *needed: str) -> Iterator[dict[str, str | None]]:
    with _text(str(path)) as file:
        # Tabs part the columns of a .tsv whatever quotes are in a sentence.
        quoting = csv.QUOTE_NONE if sign == "\t" else csv.QUOTE_MINIMAL
        reader = csv.DictReader(file, delimiter=sign, quoting=quoting)
        found = list(reader.fieldnames or [])
        for column in needed:
            if column not in found:
                hint = closest(column, found)
                raise DataError(f"{path} has no column '{column}', only {', '.join(found)}: name another.{hint}")
        try:
            yield from reader
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {reader.line_num}: not a table ({error}): mend it") from error


def _lines(path: str) -> list[str]:
    with _text(path) as file:
        try:
            return file.readlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it") from error


def _text(path: str):
    try:
        return open(path, encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the file") from error


def _folder(path: str) -> Path:
    folder = Path(path.removeprefix("file://")).expanduser()
    if not folder.is_dir():
        raise DataError(f"no folder '{path}': check data.sources path")
    return folder


def _walk(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(root, name) for name in sorted(files) if not name.startswith("."))
