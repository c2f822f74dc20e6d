"""Reading JSON lines, lines, whole text files and pages."""

import io
import json
from typing import Any

from flame.data.prepare.reading.rows import MARKUP, TOO_LARGE, Fault, Reading, Row, Rows

_LINE_SLACK = 4  # a JSON line may be longer than its text: escapes and other columns


def read_jsonl(reader: io.BufferedReader, reading: Reading) -> Rows:
    """Yields the rows of JSON lines."""
    for number, line in enumerate(_lines(reader, _LINE_SLACK * reading.max_bytes), 1):
        if isinstance(line, int):
            yield Fault(number, TOO_LARGE, f"a line of {line:,} bytes")
        elif line.strip():
            record = _parsed(line, number)
            yield record if isinstance(record, Fault) else _row_of(record, number, reading)


def read_lines(reader: io.BufferedReader, reading: Reading) -> Rows:
    """Yields every line that is not empty."""
    for number, line in enumerate(_lines(reader, reading.max_bytes), 1):
        if isinstance(line, int):
            yield Fault(number, TOO_LARGE, f"a line of {line:,} bytes")
        elif line.strip():
            yield _decoded(number, line.rstrip(b"\r\n"), {})


def read_text(reader: io.BufferedReader, reading: Reading) -> Rows:
    """Yields a whole file as one document."""
    data = reader.read(reading.max_bytes + 1)
    if len(data) > reading.max_bytes:
        yield reading.cut_or_fault(1, data, {})
    else:
        yield _decoded(1, data, {})


def read_html(reader: io.BufferedReader, reading: Reading) -> Rows:
    """Yields a whole page, mark-up and all; a cut page would have lost the ends of its elements."""
    data = reader.read(reading.max_bytes + 1)
    if len(data) > reading.max_bytes:
        yield Fault(1, TOO_LARGE, f"more than {reading.max_bytes:,} bytes")
    else:
        yield Row(1, decode_page(data), {MARKUP: "html"})


def decode_page(data: bytes, declared: str = "") -> str:
    """Decodes a page: by its byte order mark, as UTF-8, by what it or its server declares, or as a browser would."""
    if data.startswith(b"\xef\xbb\xbf"):
        return data[3:].decode("utf-8", "replace")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    for encoding in ("utf-8", declared, _meta_charset(data), "cp1252"):
        try:
            return data.decode(encoding) if encoding else data.decode("utf-8")
        except (ValueError, LookupError):  # no codec of that name, a name that is none, or bytes that do not fit
            continue
    return data.decode("latin-1")


def _meta_charset(data: bytes) -> str:
    _, found, rest = data[:2048].lower().partition(b"charset=")
    return rest.lstrip(b"\"' ").split(b'"')[0].split(b"'")[0].split(b">")[0].strip().decode("ascii", "ignore")[:40]


def _lines(reader: io.BufferedReader, longest: int) -> Any:
    """Yields lines; for one beyond ``longest`` its length alone, without ever holding it."""
    while line := reader.readline(longest + 1):
        if len(line) <= longest:
            yield line
            continue
        length = len(line)
        while not line.endswith(b"\n") and (line := reader.readline(1 << 20)):
            length += len(line)
        yield length


def _parsed(line: bytes, number: int) -> dict[str, Any] | Fault:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        return Fault(number, "invalid UTF-8", f"byte {error.start} of the line")
    except (json.JSONDecodeError, RecursionError) as error:
        return Fault(number, "not JSON", str(error), line[:300].decode("utf-8", "replace"))
    if not isinstance(record, dict):
        return Fault(number, "not a JSON object", f"it is {type(record).__name__}")
    return record


def _row_of(record: dict[str, Any], number: int, reading: Reading) -> Row | Fault:
    column = next((name for name in reading.candidates if name in record), None)
    if column is None:
        wanted = " or ".join(map(repr, reading.candidates))
        return Fault(number, "no text column", f"no {wanted} among {', '.join(record) or 'nothing'}", is_column=True)
    text = record[column]
    if not isinstance(text, str):
        return Fault(number, "not a string", f"'{column}' is {type(text).__name__}", is_column=text is not None)
    metadata = {name: record[name] for name in reading.columns if name in record}
    if not text.isascii() or len(text) > reading.max_bytes:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            return Fault(number, "invalid UTF-8", f"a lone surrogate at character {error.start}")
        if len(data) > reading.max_bytes:
            return reading.cut_or_fault(number, data, metadata)
    return Row(number, text, metadata)


def _decoded(number: int, data: bytes, metadata: dict[str, Any]) -> Row | Fault:
    try:
        return Row(number, data.decode("utf-8-sig"), metadata)
    except UnicodeDecodeError as error:
        return Fault(number, "invalid UTF-8", f"byte {error.start}", data[:300].decode("utf-8", "replace"))
