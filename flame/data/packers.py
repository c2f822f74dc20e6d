"""Packers: one source in one lane, row by row, with the state that each row leaves behind.

The state of a packer is (documents finished, tokens used of the one after them, rows given of a block that begins
there, or ``ENDED``).
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from flame.data.best_fit import best_fit, block_rows, choose_block, choose_uncut
from flame.data.feeder import Feeder
from flame.data.order import scattered
from flame.data.packing import Part, pack_continuous, pack_documents, pack_parts
from flame.data.streams import TokenStream
from flame.errors import DataError

PackerState = tuple[int, int, int]
STATE_SIZE = 3
ENDED = -1
"""In the place of the rows given: there was nothing left when a row was wanted."""

_WIDEST = 8  # blocks' worth of tokens that are looked through for one block of documents that are not too long


class Span(NamedTuple):
    """Where in a row some tokens of a document are: positions ``start`` to ``stop``."""

    start: int
    stop: int
    ordinal: int
    """0 for the lane's first document of the source."""


@dataclass(frozen=True)
class RowShape:
    """How documents become rows.

    Attributes:
        seq_len: Tokens per row.
        context_len: Longest piece of a document, if documents are isolated; else 0.
        packing: ``stream``, ``best_fit`` or ``rows``.
        too_long: ``split``, ``cut`` or ``skip``: what becomes of documents longer than a row, if not ``stream``.
        shuffle: Whether the rows of a block come in a random order.
        seed: Decides that order.
        whole: Whether ``best_fit`` rather pads a row than cuts a document that fits into one.
    """

    seq_len: int
    context_len: int
    packing: str
    too_long: str
    shuffle: bool
    seed: int
    whole: bool = False

    @property
    def planes(self) -> int:
        """Ids, labels and, where documents are isolated, positions."""
        return 3 if self.context_len else 2

    @property
    def longest(self) -> int:
        """Most tokens of a document in a row."""
        return self.context_len or self.seq_len


class StreamPacker:
    """Rows cut from one stream of documents."""

    def __init__(self, feeder: Feeder, stream: TokenStream, shape: RowShape, trace: bool):
        self.feeder = feeder
        self.stream = stream
        self._shape = shape
        self._trace = trace
        self.spans: list[Span] = []
        """The documents of the last row, if rows are traced."""

    @property
    def state(self) -> PackerState:
        """From which the next row follows."""
        return *self.stream.place, 0

    def next_row(self) -> np.ndarray | None:
        """Returns the next row, int32 ``[planes, seq_len]``, or None if nothing is left."""
        shape, stream = self._shape, self.stream
        self.feeder.fill(stream, shape.seq_len + 1)
        if self._trace:
            self._note_spans()
        if shape.context_len:
            return pack_documents(stream, shape.seq_len, shape.context_len)
        return pack_continuous(stream, shape.seq_len)

    def _note_spans(self) -> None:
        count = min(self._shape.seq_len, self.stream.available)
        start, self.spans = 0, []
        for end, ordinal in zip(self.stream.ends(count).tolist(), self.stream.ordinals(count), strict=True):
            self.spans.append(Span(start, min(end, count), ordinal))
            start = end


class BlockPacker:
    """Rows of chosen documents: those of a block fitted together, or one in each row.

    Args:
        feeder: Fills the stream.
        stream: Begins where the block does.
        shape: How documents become rows.
        source: The source's number.
        given: Rows of the block given before.
        tally: Counts what becomes of documents (``documents``, ``cut``, ``too long``, ``tokens left out``) and of
            positions (``rows``, ``tokens``).
    """

    def __init__(
        self,
        feeder: Feeder,
        stream: TokenStream,
        shape: RowShape,
        source: int,
        given: int,
        tally: Counter[str],
    ):
        self.feeder = feeder
        self.stream = stream
        self.tally = tally
        self.spans: list[Span] = []
        """The documents of the last row."""
        self._shape = shape
        self._source = source
        self._begin: tuple[int, int] = stream.place
        self._given = given
        self._tokens = np.empty(0, np.int32)
        self._is_masked = False
        self._rows: list[list[Part]] | None = None
        self._skipped = 0  # documents left out since the last row
        self._used = stream.place[1]  # tokens taken of the document that the stream is in

    @property
    def state(self) -> PackerState:
        """From which the next row follows."""
        return *self._begin, self._given

    def next_row(self) -> np.ndarray | None:
        """Returns the next row, int32 ``[planes, seq_len]``, or None if nothing is left."""
        if self._rows is None and not self._begin_block():
            return None
        assert self._rows is not None
        parts = self._rows[self._given]
        shape = self._shape
        row = pack_parts(self._tokens, parts, shape.seq_len, shape.context_len, self._is_masked)
        self._note(parts)
        self._given += 1
        if self._given >= len(self._rows):
            self._begin, self._given, self._rows = self.stream.place, 0, None
        return row

    def _begin_block(self) -> bool:
        """Takes the documents of the next block from the stream, and says which row each goes to."""
        shape, stream = self._shape, self.stream
        in_rows = shape.packing == "rows"
        while True:
            self._begin = stream.place
            most = self._block_tokens()
            pieces, is_all = self._pieces_of_block(1 if in_rows else most)
            items = [item for piece in pieces for item in self._items(piece)]
            if items:
                break
            if not pieces:
                return False
            self._take(pieces, pieces[-1].stop)  # all of them are left out
            self._check_skipped(len(pieces))
        self._skipped = 0
        lengths = np.array([item.stop - item.start for item in items], np.int64)
        if in_rows:
            chosen, rows, left = 1, 1, 0
        else:
            may_cut = shape.too_long != "cut"
            choose = choose_uncut if shape.whole else partial(choose_block, is_all=is_all, may_cut=may_cut)
            chosen, rows, left = choose(lengths, shape.seq_len, most)
        lengths = lengths[:chosen]
        lengths[-1] -= left
        self._rows = self._dealt(items[:chosen], lengths, rows)
        self.tally["cut"] += left > 0
        last = items[chosen - 1]
        self._take(pieces, last.end if shape.too_long == "cut" else last.stop - left)
        self._given = min(self._given, len(self._rows) - 1)  # if the source has become shorter since
        return True

    def _pieces_of_block(self, most: int) -> tuple[list[Part], bool]:
        """Looks at documents with ``most`` tokens to be packed, or at all that are left.

        Returns:
            The documents, and whether these are all.
        """
        in_rows = self._shape.packing == "rows"
        count, widest = most, most if in_rows else _WIDEST * most
        while True:
            self.feeder.fill(self.stream, max(count, self._shape.longest) + 1)
            pieces = self._pieces(count)
            is_all = count >= self.stream.available
            size = sum(item.stop - item.start for piece in pieces for item in self._items(piece))
            if is_all or count >= widest or size >= most:
                return pieces, is_all
            count *= 2

    def _check_skipped(self, documents: int) -> None:
        """Ends the search for a document that fits where there is none."""
        self._skipped += documents
        if self.feeder.is_endless and self._skipped > self.feeder.patience:
            raise DataError(
                f"{self.feeder.source.name}: {self._skipped} documents in a row are longer than {self._shape.longest} "
                "tokens, and data.too_long = 'skip' leaves them out: raise training.seq_len (and context_len), or set "
                "data.too_long to 'split' or 'cut'"
            )

    def _block_tokens(self) -> int:
        """The most tokens of the block. Lanes begin with blocks of different sizes, or all would need a new one, and
        the work it takes, in the same step ever after."""
        rows = block_rows(self._shape.seq_len, self._shape.whole)
        if self._begin == (0, 0):
            rows = 1 + int(scattered(rows, self._shape.seed, self._source)[self.stream.lane % rows])
        return rows * self._shape.seq_len

    def _pieces(self, count: int) -> list[Part]:
        ends, ordinals = self.stream.ends(count).tolist(), self.stream.ordinals(count)
        starts = [0, *ends][: len(ends)]
        return [Part(start, end, end, ordinal) for start, end, ordinal in zip(starts, ends, ordinals, strict=True)]

    def _items(self, piece: Part) -> list[Part]:
        """What goes into rows of a document, by ``too_long``."""
        longest, policy = self._shape.longest, self._shape.too_long
        start, stop, end, ordinal = piece
        if stop - start <= longest:
            return [piece]
        if policy == "skip":
            return []
        if policy == "cut":
            return [Part(start, start + longest, end, ordinal)]
        return [Part(at, min(at + longest, stop), end, ordinal) for at in range(start, stop, longest)]

    def _take(self, pieces: list[Part], count: int) -> None:
        """Moves the stream on, and counts what that means for documents."""
        tally, longest, policy = self.tally, self._shape.longest, self._shape.too_long
        for start, stop, _, _ in pieces:
            if stop > count:
                self._used += max(count - start, 0)
                break
            size, self._used = self._used + stop - start, 0
            tally["documents"] += 1
            if size > longest:
                tally["too long"] += 1
                tally["tokens left out"] += {"split": 0, "cut": size - longest, "skip": size}[policy]
        self._tokens = self.stream.window(count + 1)
        self._is_masked = bool(len(self._tokens)) and bool(self._tokens.min() < 0)
        self.stream.advance(count)

    def _dealt(self, items: list[Part], lengths: np.ndarray, rows: int) -> list[list[Part]]:
        """The parts of every row; rows begin with the beginning of a document wherever they hold one."""
        dealt = best_fit(lengths, self._shape.seq_len, rows, may_cut=not self._shape.whole)
        order = list(range(len(dealt)))
        if self._shape.shuffle:
            order = scattered(len(dealt), self._shape.seed, self._source, self.stream.lane, *self._begin).tolist()
        # Of every item, where in its row it comes.
        ranks = scattered(len(items), self._shape.seed, self._source, self.stream.lane, *self._begin, 1)
        ranks = ranks.tolist() if self._shape.shuffle else list(range(len(items)))
        packed = []
        for row in order:
            fragments = [
                (self._is_inner(items, item, start), ranks[item], item, start, stop) for item, start, stop in dealt[row]
            ]
            parts = []
            for _, _, item, start, stop in sorted(fragments):
                first, _, end, ordinal = items[item]
                parts.append(Part(first + start, first + stop, end, ordinal))
                self.tally["cut"] += start == 0 and stop < lengths[item]
            packed.append(parts)
        return packed

    def _is_inner(self, items: list[Part], item: int, start: int) -> bool:
        """Whether a part does not begin its document."""
        if start or (item and items[item].start == items[item - 1].stop and items[item].end == items[item - 1].end):
            return True
        return item == 0 and self._begin[1] > 0

    def _note(self, parts: list[Part]) -> None:
        place, self.spans = 0, []
        for start, stop, _, ordinal in parts:
            self.spans.append(Span(place, place + stop - start, ordinal))
            place += stop - start
        self.tally["rows"] += 1
        self.tally["tokens"] += place
