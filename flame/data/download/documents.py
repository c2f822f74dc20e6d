"""The documents in a fetched file: JSON lines, web pages as text (WET) and text with separators, compressed or not."""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from flame.data.compressed import DAMAGE, decompressed
from flame.data.download.faults import DamagedFile
from flame.data.download.registry import Corpus
from flame.data.suffixes import COMPRESSED, SUFFIXES
from flame.data.suffixes import format_of as format_in
from flame.data.web_archives import is_whole
from flame.errors import ConfigError, DataError, need

FORMATS = {**SUFFIXES, ".wet": "wet", ".tar": "archive", ".tgz": "archive"}
_CHUNK = 1 << 20
_LONGEST = 1 << 28  # bytes of one document: more is taken for a fault of the file
_DAMAGE = (*DAMAGE, pa.ArrowException, UnicodeDecodeError)
_SEPARATOR = b"\n"
_WEB_FIELDS = {"url": "WARC-Target-URI", "date": "WARC-Date", "language": "WARC-Identified-Content-Language"}


class Document(NamedTuple):
    """A text, and all else that the file says about it."""

    text: str
    fields: dict[str, Any]


def format_of(name: str) -> str:
    """What a file holds, by its name.

    Raises:
        DataError: The name does not tell.
    """
    found = format_in(name, FORMATS)
    if not found:
        raise DataError(
            f"'{name}': no known kind of file; flame reads {', '.join(FORMATS)}, also with {' or '.join(COMPRESSED)}"
        )
    return found


def check_format(name: str, corpus: Corpus) -> str:
    """The format of a file, once it is sure that it can be converted.

    Raises:
        DataError: It cannot.
        ConfigError: A package is missing, or this Python is too old.
    """
    found = format_of(name)
    if found == "archive" and not hasattr(tarfile, "data_filter"):
        raise ConfigError(f"'{name}': this Python cannot unpack archives safely, use 3.10.12, 3.11.4 or later")
    if found == "wet":
        need("prepare", "warcio")
    if found == "txt" and not corpus.separator:
        raise DataError(f"corpus '{corpus.name}': text files need a separator in the registry, between their documents")
    return found


def read_documents(path: Path, corpus: Corpus, skipped: Counter[str]) -> Iterator[Document]:
    """Yields the documents of a file.

    Args:
        path: of any format but an archive.
        corpus: says where the text is.
        skipped: counts what is left out, by reason.

    Raises:
        DamagedFile: The file ends early, or is not what its name says.
        DataError: It has no texts where they should be.
    """
    kind = format_of(path.name)
    try:
        if kind == "parquet":
            yield from _parquet(path, corpus.text_column, skipped)
        elif kind == "jsonl":
            yield from _json_lines(path, corpus.text_column, skipped)
        elif kind == "wet":
            yield from _web_pages(path, skipped)
        else:
            for data in _pieces(path, corpus.separator.encode(), skipped):
                yield from _plain_text(data, skipped)
    except _DAMAGE as error:
        raise DamagedFile(f"{path.name} is damaged or incomplete ({_one_line(error)})") from error
    except OSError as error:
        if error.errno is not None:
            raise
        # pyarrow's way to say that a page cannot be decompressed: no call to the system has failed.
        raise DamagedFile(f"{path.name} is damaged or incomplete ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def check_parquet(path: Path, text_column: str) -> int:
    """The number of rows of a parquet file with texts.

    Raises:
        DamagedFile: It is not a whole parquet file.
        DataError: It lacks the column.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(f"{path.name} is not a whole parquet file ({_one_line(error)})") from error
    if text_column not in schema.names:
        raise DataError(f"{path.name} has no column '{text_column}', only {', '.join(schema.names)}: set text_column")
    return rows


def _parquet(path: Path, text_column: str, skipped: Counter[str]) -> Iterator[Document]:
    check_parquet(path, text_column)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            yield from _with_text(batch.to_pylist(), text_column, skipped)


def _json_lines(path: Path, text_column: str, skipped: Counter[str]) -> Iterator[Document]:
    for line in _pieces(path, _SEPARATOR, skipped):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            skipped["not JSON"] += 1
            continue
        if isinstance(record, dict):
            yield from _with_text([record], text_column, skipped)
        else:
            skipped["not a JSON object"] += 1


def _with_text(records: Sequence[dict[str, Any]], text_column: str, skipped: Counter[str]) -> Iterator[Document]:
    for record in records:
        text = record.pop(text_column, None)
        if not isinstance(text, str):
            skipped[no_text(text_column)] += 1
        elif not text or text.isspace():
            skipped["empty text"] += 1
        elif not _is_whole(text):
            skipped["half a character"] += 1
        else:
            yield Document(text, record)


def _plain_text(data: bytes, skipped: Counter[str]) -> Iterator[Document]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        skipped["invalid UTF-8"] += 1
        return
    if not text.isspace() and text:
        yield Document(text.strip("\r\n"), {})


def no_text(text_column: str) -> str:
    """The reason by which records without a text are counted."""
    return f"no text in '{text_column}'"


def _is_whole(text: str) -> bool:
    """JSON can write one half of a character that UTF-16 needs two for."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _web_pages(path: Path, skipped: Counter[str]) -> Iterator[Document]:
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed
    from warcio.statusandheaders import StatusAndHeadersParserException

    with _opened(path) as stream:
        try:
            for record in ArchiveIterator(_Loud(stream, path.name)):
                is_page = record.rec_type == "conversion"
                data = record.content_stream().read() if is_page else b""
                if not is_whole(record):
                    raise DamagedFile(f"{path.name} ends within a record")
                text = data.decode("utf-8", errors="replace")
                if text.strip():
                    header = record.rec_headers
                    yield Document(text, {key: header.get_header(name) for key, name in _WEB_FIELDS.items()})
                else:
                    skipped["empty text"] += is_page
        except (ArchiveLoadFailed, StatusAndHeadersParserException) as error:
            raise DamagedFile(f"{path.name} is not a WARC file ({_one_line(error)})") from error


class _Loud:
    """A stream whose damage gets through warcio, which takes an ``EOFError`` for the end."""

    def __init__(self, stream: BinaryIO, name: str):
        self._stream, self._name = stream, name

    def read(self, size: int = -1) -> bytes:
        """Reads as files do. Raises ``DamagedFile``."""
        try:
            return self._stream.read(size)
        except DAMAGE as error:
            raise DamagedFile(f"{self._name} is damaged or incomplete ({_one_line(error)})") from error


def _pieces(path: Path, separator: bytes, skipped: Counter[str]) -> Iterator[bytes]:
    """What stands between separators; memory is bounded by the longest piece, and that by 256 MiB."""
    rest, searched, too_long = bytearray(), 0, False
    for chunk in _chunks(path):
        rest += chunk
        start = 0
        while (stop := rest.find(separator, max(start, searched))) >= 0:
            if not too_long:
                yield bytes(rest[start:stop])
            start, too_long = stop + len(separator), False
        del rest[:start]
        searched = max(0, len(rest) - len(separator) + 1)
        if len(rest) > _LONGEST:
            skipped["longer than 256 MiB"] += not too_long
            too_long = True
            del rest[: len(rest) - len(separator) + 1]
            searched = 0
    if rest and not too_long:
        yield bytes(rest)


def _chunks(path: Path) -> Iterator[bytes]:
    with _opened(path) as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with open(path, "rb") as stored:
        yield decompressed(path.name, stored)
