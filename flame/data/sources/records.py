"""Records: one row of a source as a dict, or a bad row that says why it cannot be used."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flame.errors import DataError

TEXT = "text"
"""The key under which a record carries its text, whatever the source calls that column."""

_CUT_WINDOW = 4096  # bytes in which a friendly place to cut is looked for


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    reason: str
    """Short and the same for every row with this fault: rows are counted by it."""
    where: str
    """File (or dataset) and row."""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}{f' ({self.detail})' if self.detail else ''}"


class DocumentSource(Protocol):
    """Documents with random access; picklable, so that worker processes can read it too."""

    name: str

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[dict[str, Any] | BadRow]:
        """Reads the documents with these numbers, in this order; a faulty one comes back as a ``BadRow``."""
        ...


@dataclass
class BadRowPolicy:
    """What happens to bad rows: the first one is an error, or all are skipped and counted by reason."""

    on_bad_row: str
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def skip(self, row: BadRow) -> None:
        """Counts a row that is left out.

        Raises:
            DataError: If bad rows are errors.
        """
        if self.on_bad_row == "error":
            raise DataError(f'{row}: mend the row, or set data.on_bad_row = "skip"')
        self.count(row.reason, str(row))

    def count(self, reason: str, example: str) -> None:
        """Counts something worth telling that is not an error under any policy."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, example)

    def drain(self) -> tuple[dict[str, int], dict[str, str]]:
        """Hands over what was counted since the last call, and the first example of every reason."""
        drained = dict(self.counts), dict(self.examples)
        self.counts.clear()
        self.examples.clear()
        return drained


def checked_text(record: dict[str, Any], column: str, where: str) -> dict[str, Any] | BadRow:
    """Returns the record with its text under ``"text"``, or says what is wrong with that text."""
    if column not in record:
        return BadRow("missing column", where, f"no '{column}' among {', '.join(map(str, record)) or 'nothing'}")
    text = record[column]
    if not isinstance(text, str):
        return BadRow("not a string", where, f"'{column}' is {type(text).__name__}")
    if not text or text.isspace():
        return BadRow("empty text", where)
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        return BadRow("invalid UTF-8", where, str(error))
    return record if column == TEXT else {**record, TEXT: text}


def cut_text(text: str, limit: int) -> Iterator[str]:
    """Yields a text in pieces of at most ``limit`` UTF-8 bytes, cut after a line or a word where there is one."""
    if len(text) * 4 <= limit or len(data := text.encode()) <= limit:
        yield text
        return
    start = 0
    while len(data) - start > limit:
        stop = start + limit
        stop -= tail_to_leave(data[max(start, stop - _CUT_WINDOW) : stop])
        yield data[start:stop].decode()
        start = stop
    yield data[start:].decode()


def tail_to_leave(window: bytes) -> int:
    """How many bytes at the end of ``window`` belong to the next piece when text is cut near that end."""
    for separator in (b"\n", b" "):
        found = window.rfind(separator)
        if found >= 0:
            return len(window) - found - 1
    # No friendly place: step back over the character that would be cut in two.
    lead = len(window) - 1
    while lead > 0 and window[lead] & 0xC0 == 0x80:
        lead -= 1
    return 0 if lead <= 0 or _is_whole(window[lead:]) else len(window) - lead


def _is_whole(character: bytes) -> bool:
    try:
        character.decode()
    except UnicodeDecodeError:
        return False
    return True
