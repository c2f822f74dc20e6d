"""What readers yield: rows with text, and faults."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flame.errors import DataError

MARKUP = "markup"
"""Key of a document's metadata that says its text is a page of HTML."""


class Row(NamedTuple):
    """One document of a file."""

    number: int
    """Its place in the file, from 1."""
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """Something of a file that cannot be used."""

    number: int
    """The row, from 1."""
    reason: str
    """Short, and the same for every such fault: they are counted by it."""
    detail: str = ""
    beginning: str = ""
    """The beginning of the text, where there is one to show."""
    is_column: bool = False
    """Whether the text column is absent or of another type: if it is so in all rows, the job is at fault."""


class BadFile(Exception):
    """A file is damaged, and nothing can be read beyond this point."""


@dataclass(frozen=True)
class Reading:
    """What a reader has to know besides the file."""

    path: str
    max_bytes: int
    """Longest document."""
    cut: bool
    """Whether the beginning of a longer one is taken, rather than none of it."""
    text_column: str = ""
    columns: list[str] = field(default_factory=list)
    """Further columns to carry along."""

    def cut_or_fault(self, number: int, beginning: bytes, metadata: dict[str, Any]) -> Row | Fault:
        """Decides about a document of which more than ``max_bytes`` are there."""
        text = beginning[: self.max_bytes].decode("utf-8", "ignore")
        if self.cut:
            return Row(number, text, metadata)
        return Fault(number, TOO_LARGE, f"more than {self.max_bytes:,} bytes", text[:1000])

    @property
    def candidates(self) -> list[str]:
        """Names the text column may have."""
        return [self.text_column] if self.text_column else ["text", "content"]

    def column(self, present: list[str]) -> str:
        """Finds the text column among those of a file.

        Raises:
            DataError: It is not there.
        """
        for name in self.candidates:
            if name in present:
                return name
        wanted = " or ".join(map(repr, self.candidates))
        raise DataError(f"{self.path} has no column {wanted} among {', '.join(present)}: set text_column")


TOO_LARGE = "too large"
Rows = Iterator[Row | Fault]
