"""A row for people to read: its documents with borders, and which of its tokens are trained on."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from flame.data.inspect.rows import PlacedRow, is_scored
from flame.data.inspect.styles import Styles
from flame.data.packing import IGNORE
from flame.data.rows import DocumentSpan

_OPEN, _CLOSE = "⟦", "⟧"


class Decoder(Protocol):
    """What a tokenizer is needed for."""

    def decode(self, token_ids: list[int], **options: bool) -> Any: ...


class Renderer:
    """Turns rows into lines.

    Tokens that training does not learn to predict are dim on a terminal, and in ⟦brackets⟧ elsewhere.

    Args:
        tokenizer: of the job.
        names: of its sources.
        where: says where a document comes from.
        color: whether the lines go to a terminal.
        tokens: whether to list tokens one by one instead of decoding documents.
    """

    def __init__(
        self,
        tokenizer: Decoder,
        names: Sequence[str],
        where: Callable[[DocumentSpan], str],
        color: bool,
        tokens: bool = False,
    ):
        self._tokenizer, self._names, self._where = tokenizer, names, where
        self._styles, self._tokens = Styles(color), tokens

    def lines(self, placed: PlacedRow) -> Iterator[str]:
        """The lines of a row."""
        row = placed.row
        ids, labels = row.values[0], row.values[1]
        spans = row.spans or []
        filled = max((span.stop for span in spans), default=0)
        figures = [
            f"{len(spans)} document{'s' * (len(spans) != 1)}",
            f"{int((labels != IGNORE).sum())} of {len(labels)} labels scored",
            *([f"{len(labels) - filled} padding"] if filled < len(labels) else []),
        ]
        yield self._styles.bold(f"━━ step {placed.step}, row {placed.number} (lane {row.lane}): {', '.join(figures)}")
        for span in spans:
            yield from self._document(placed, span)
        if filled < len(labels):
            yield self._styles.bold(f"── padding, {len(labels) - filled} tokens")
        if len(ids) and not spans:
            yield self._styles.dim("   the lane has ended")

    def _document(self, placed: PlacedRow, span: DocumentSpan) -> Iterator[str]:
        row = placed.row
        name = self._names[span.source]
        positions = ""
        if len(row.values) > 2:
            inside = row.values[2, span.start : span.stop]
            restarts = (np.flatnonzero(inside == 0) + span.start).tolist()
            begin = [f"go on from {inside[0]}"] if inside[0] else []
            restart = [f"restart at {', '.join(map(str, restarts))}"] if restarts else []
            positions = f"; positions {' and '.join([*begin, *restart])}"
        yield self._styles.bold(f"── [{span.start}:{span.stop}] document {span.document} of {name}{positions}")
        where = self._where(span)
        if where != name:
            yield self._styles.dim(f"   {where}")
        scored = is_scored(row)
        yield from (self._token_lines if self._tokens else self._text_lines)(placed, span, scored)
        label = row.values[1, span.stop - 1]
        if label != IGNORE and not scored[span.stop : span.stop + 1].any():
            yield self._styles.dim(f"   cut; the token that follows is scored: {self._decoded(np.array([label]))!r}")

    def _text_lines(self, placed: PlacedRow, span: DocumentSpan, all_scored: np.ndarray) -> Iterator[str]:
        ids = placed.row.values[0, span.start : span.stop]
        scored = all_scored[span.start : span.stop]
        # Runs of tokens that are all scored, or all not.
        borders = [0, *(np.flatnonzero(np.diff(scored)) + 1).tolist(), len(ids)]
        text = ""
        for start, stop in zip(borders, borders[1:], strict=False):
            piece = self._decoded(ids[start:stop])
            text += piece if scored[start] else self._unscored(piece)
        for line in text.split("\n"):
            yield f"   {line}"

    def _token_lines(self, placed: PlacedRow, span: DocumentSpan, scored: np.ndarray) -> Iterator[str]:
        values = placed.row.values
        for place in range(span.start, span.stop):
            position = f"{values[2, place]:>6}" if len(values) > 2 else ""
            label = values[1, place]
            target = "-" if label == IGNORE else f"{label} {self._decoded(values[1, place : place + 1])!r}"
            text = repr(self._decoded(values[0, place : place + 1]))
            line = f"{place:>6}{position}{values[0, place]:>8}  {text:<20} -> {target}"
            yield line if scored[place] else self._styles.dim(line)

    def _decoded(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _unscored(self, text: str) -> str:
        return self._styles.dim(text) if self._styles.color else f"{_OPEN}{text}{_CLOSE}"
