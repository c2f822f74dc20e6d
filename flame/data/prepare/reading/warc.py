"""Reading web archives: pages of WARC files, and the text of WET files."""

import io
from typing import Any

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed
from warcio.statusandheaders import StatusAndHeadersParserException

from flame.data.prepare.reading.rows import MARKUP, TOO_LARGE, BadFile, Fault, Reading, Row, Rows
from flame.data.prepare.reading.text import decode_page
from flame.data.web_archives import is_whole

_DOCUMENTS = ("response", "conversion", "resource")
_PAGES = ("text/html", "application/xhtml+xml")


def read_warc(reader: io.BufferedReader, reading: Reading) -> Rows:
    """Yields the pages (`response`) and texts (`conversion`) of an archive; other records are no documents.

    Raises:
        BadFile: The archive is damaged or cut off.
    """
    number = 0
    try:
        for number, record in enumerate(ArchiveIterator(reader), 1):
            row = None
            if record.rec_type in _DOCUMENTS:
                row = _row(number, record, record.content_stream().read(reading.max_bytes + 1), reading)
            if not is_whole(record):
                raise BadFile(f"{reading.path} is cut off in record {number:,}")
            if row is not None:
                yield row
    except (ArchiveLoadFailed, StatusAndHeadersParserException, EOFError, ValueError) as error:
        detail = " ".join(str(error).split())[:200]
        raise BadFile(f"{reading.path} is damaged after record {number:,}: {detail}") from error


def _row(number: int, record: Any, data: bytes, reading: Reading) -> Row | Fault | None:
    kind = _content_type(record)
    is_page = record.rec_type != "conversion" and kind.split(";")[0].strip().lower() in _PAGES
    if not is_page and record.rec_type != "conversion" and not kind.lower().startswith("text/plain"):
        return None
    if record.http_headers is not None and record.http_headers.get_statuscode() not in ("200", ""):
        return None
    headers = record.rec_headers
    metadata = {"url": headers.get_header("WARC-Target-URI") or "", "date": headers.get_header("WARC-Date") or ""}
    if len(data) > reading.max_bytes:
        if is_page:
            return Fault(number, TOO_LARGE, f"more than {reading.max_bytes:,} bytes")
        return reading.cut_or_fault(number, data, metadata)
    if not data.strip():
        return None
    if is_page:
        declared = kind.lower().partition("charset=")[2].split(";")[0].strip("\"' ")
        return Row(number, decode_page(data, declared), metadata | {MARKUP: "html"})
    try:
        return Row(number, data.decode(), metadata)
    except UnicodeDecodeError as error:
        return Fault(number, "invalid UTF-8", f"byte {error.start}", data[:300].decode("utf-8", "replace"))


def _content_type(record: Any) -> str:
    headers = record.http_headers or record.rec_headers
    return headers.get_header("Content-Type") or ""
