"""Token streams: the documents of one source as one lane sees them, as one array of tokens and where documents end.

A stream's whole state is (documents finished, tokens used of the current document): what was read ahead is made
again after a resume.
"""

from collections import deque
from typing import Any, NamedTuple

import numpy as np


class Piece(NamedTuple):
    """A document, or a part of one that is treated as a document of its own, before it is encoded."""

    record: dict[str, Any] | None
    """None for a document that was left out."""
    size: int
    """Characters of text, or a guess for records without any."""
    ordinal: int
    """0 for the lane's first document."""
    document: int
    """Its number in the source."""
    is_last: bool
    """Whether the document ends with this piece."""


class TokenStream:
    """One source in one lane.

    Args:
        lane: The lane.
        finished: Documents that the stream begins after (with blocks, holes count).
        used: Tokens of the document after them that the stream begins after.
    """

    def __init__(self, lane: int, finished: int, used: int):
        self.lane = lane
        self.ended = False
        """Whether no more documents will come; what is available may still be taken."""
        self.is_masked = False
        """Whether there have been tokens that are never to be predicted, ``~token``."""
        self.pieces: deque[Piece] = deque()
        """Read, but not encoded."""
        # Documents to come: [2, n], ordinals and numbers.
        self.upcoming = np.empty((2, 0), np.int64)
        self.next_ordinal = finished
        """The first ordinal that ``upcoming`` does not reach."""
        self.is_exhausted = False
        """Whether no document comes after ``upcoming``."""
        self._tokens = np.empty(0, np.int32)
        self._cursor = used  # beyond the tokens while those used before a resume have not come again
        self._place = finished, used
        self._is_resuming = used > 0
        # Pieces in the buffer, int64 [pieces]: where they end, whose they are, and where those documents begin.
        self._ends, self._ordinals, self._starts = (np.empty(0, np.int64) for _ in range(3))
        # The document of the last piece: its ordinal, where it begins, and whether it ends there.
        self._tail = (finished, 0, False)

    @property
    def available(self) -> int:
        """Tokens encoded and not taken yet; negative while those used before a resume are awaited."""
        return len(self._tokens) - self._cursor

    @property
    def place(self) -> tuple[int, int]:
        """Documents finished, and tokens used of the one after them, which may be a hole or empty: what comes next is
        not asked, so that the place does not depend on what was read ahead."""
        return self._place

    def window(self, count: int) -> np.ndarray:
        """A view of the next tokens, up to ``count`` of them."""
        return self._tokens[self._cursor : self._cursor + count]

    def ends(self, count: int) -> np.ndarray:
        """Where the pieces with some of the next ``count`` tokens end, counted from the first of these tokens.

        Returns:
            int64 [pieces], ascending, at least 1; the last may lie beyond ``count``. Pieces without tokens are left
            out.
        """
        first = int(self._ends.searchsorted(self._cursor, side="right"))
        last = int(self._ends.searchsorted(min(self._cursor + count, len(self._tokens)), side="left"))
        ends = self._ends[first : last + 1] - self._cursor
        return ends[np.diff(ends, prepend=0) > 0]

    def ordinals(self, count: int) -> list[int]:
        """The documents that the pieces of ``ends(count)`` belong to."""
        return self._ordinals[self._ends.searchsorted(self._cursor + self.ends(count))].tolist()

    def advance(self, count: int) -> None:
        """Takes ``count`` tokens, which must be available."""
        if not count:
            return
        self._cursor += count
        at = int(self._ends.searchsorted(self._cursor))  # the piece that the last of these tokens is from
        ordinal = self._ordinals.item(at)
        if self._cursor == self._ends.item(at) and self._is_last(at):
            self._place = ordinal + 1, 0
        else:
            self._place = ordinal, self._cursor - self._starts.item(at)

    def _is_last(self, at: int) -> bool:
        """Whether a document ends with this piece."""
        if at + 1 == len(self._ends):
            return self._tail[2]
        return self._ordinals.item(at + 1) != self._ordinals.item(at)

    def add(self, tokens: np.ndarray, lengths: np.ndarray, ordinals: np.ndarray, is_last: np.ndarray) -> None:
        """Appends pieces.

        Args:
            tokens: int32 [tokens], of all pieces one after the other.
            lengths: int64 [pieces].
            ordinals: int64 [pieces], ascending.
            is_last: bool [pieces].
        """
        if not len(lengths):
            return
        self._drop_taken()
        ends = len(self._tokens) + np.cumsum(lengths)
        starts = ends - lengths
        _, start, is_complete = self._tail
        begins = np.append(is_complete, is_last[:-1])
        if not begins.all():
            first = np.maximum.accumulate(np.where(begins, np.arange(len(lengths)), -1))  # where its document begins
            starts = np.where(first >= 0, starts[first], start)
        self.is_masked = self.is_masked or bool(len(tokens) and tokens.min() < 0)
        self._tokens = np.concatenate([self._tokens, tokens])
        self._ends = np.concatenate([self._ends, ends])
        self._ordinals = np.concatenate([self._ordinals, ordinals])
        self._starts = np.concatenate([self._starts, starts])
        self._tail = (int(ordinals[-1]), int(starts[-1]), bool(is_last[-1]))
        if self._is_resuming:
            # A document that has become shorter since gives nothing any more.
            complete = ends[is_last]
            if len(complete):
                self._cursor = min(self._cursor, int(complete[0]))
            self._is_resuming = self.available < 0

    def _drop_taken(self) -> None:
        """Gives the memory of taken tokens back."""
        taken = min(self._cursor, len(self._tokens))
        if not taken:
            return
        left = int(self._ends.searchsorted(taken, side="right"))
        self._tokens = self._tokens[taken:]
        self._ends, self._ordinals = self._ends[left:] - taken, self._ordinals[left:]
        self._starts = self._starts[left:] - taken
        self._cursor -= taken
        ordinal, start, is_complete = self._tail
        self._tail = (ordinal, start - taken, is_complete)
