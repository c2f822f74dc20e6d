"""Records: one row of a source as a dict, or a bad row that says why it cannot be used."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flame.errors import DataError

TEXT = "text"
"""The key under which a record carries its text, whatever the source calls that column."""

IDS = "input_ids"
"""The key under which a tokenized record carries its token ids."""

LAYOUT = "@layout"
"""The key under which a record carries the layout that its source has in the job."""

MESSAGES = "messages"
"""The key under which a bare list of messages, as a line of JSON, becomes a record."""

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


Record = dict[str, Any] | BadRow


class DocumentSource(Protocol):
    """Documents with random access; picklable, so that worker processes can read it too.

    A tokenized source may also have ``read_tokens(indices)``: the ids of these documents one after the other, int32
    ``[tokens]``, and the length of each, int64 ``[len(indices)]``. It is ``read`` without an object per document; None
    stands for not having it.
    """

    name: str
    block: int
    """Documents that lie together and are best read one after the other; 1 if any is as near as any other."""
    tokenized: bool
    """Whether records are ``{"input_ids": int32 [tokens]}``, which no encoder has to run on."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the documents with these numbers, in this order; a faulty one comes back as a ``BadRow``."""
        ...

    def prefetch(self, indices: Sequence[int]) -> None:
        """Hints that these documents are read soon; returns at once."""
        ...

    def where(self, index: int) -> str:
        """File (or dataset) and row of a document, for messages."""
        ...


class NearDocuments:
    """What all sources have in common whose documents are text on this machine, each as near as any other."""

    block = 1
    tokenized = False

    def prefetch(self, indices: Sequence[int]) -> None:
        """Does nothing: there is no latency to hide."""


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
