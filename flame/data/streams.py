"""Token streams: the documents of one source as one lane sees them, read ahead and encoded in batches.

A stream's whole state is (documents finished, tokens used of the current document): what was read ahead is made
again after a resume. A feeder serves all streams of one source in this process, so that documents of several lanes
share one call of the encoder.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from flame.data.encoder import Encoder
from flame.data.order import DocumentOrder
from flame.data.sources.records import TEXT, BadRow, BadRowPolicy, DocumentSource, cut_text
from flame.errors import DataError

_ENCODE_BYTES = 1 << 19  # text per call of the encoder: enough to keep all its threads busy
_READ_DOCUMENTS = 256  # documents per read, at most
_LEAST_SIZE = 256  # what a piece counts at least: rows that are empty or bad must not be read without end
_NO_TOKENS = np.empty(0, np.int32)


class Segment(NamedTuple):
    """Consecutive tokens of one document."""

    tokens: np.ndarray
    following: int | None
    """The document's next token, or None if it ends here."""


class _Piece(NamedTuple):
    record: dict[str, Any] | None
    """None for a document that was left out."""
    size: int
    """Characters of text, or a guess for records without any."""
    is_last: bool
    """Whether the document ends with this piece."""


class TokenStream:
    """One source in one lane: documents ``lane``, ``lane + lanes``, ``lane + 2 lanes``, ... of its order."""

    def __init__(self, lane: int, finished: int, used: int):
        self.lane = lane
        self.finished = finished
        self.used = used
        self.available = 0
        """Tokens encoded and not taken yet."""
        self.ended = False
        """Whether no more documents will come; what is available may still be taken."""
        self._next_document = finished
        self._pieces: deque[_Piece] = deque()
        self._encoded: deque[tuple[np.ndarray, bool]] = deque()
        self._to_drop = used

    def take(self, count: int) -> list[Segment]:
        """Takes up to ``count`` tokens, fewer only if that is all there is."""
        segments = []
        while self._encoded and (count or not len(self._encoded[0][0])):
            tokens, is_last = self._encoded.popleft()
            taken, rest = tokens[:count], tokens[count:]
            count -= len(taken)
            self.available -= len(taken)
            self.used += len(taken)
            if len(taken):
                segments.append(Segment(taken, int(rest[0]) if len(rest) else None))
            if len(rest):
                self._encoded.appendleft((rest, is_last))
            elif is_last:
                self.finished, self.used = self.finished + 1, 0
        return segments

    def peek(self) -> int | None:
        """Returns the next token, of whichever document, without taking it."""
        return next((int(tokens[0]) for tokens, _ in self._encoded if len(tokens)), None)

    def _add(self, tokens: np.ndarray, is_last: bool) -> None:
        # After a resume the first tokens of the first document have been used before.
        dropped = min(self._to_drop, len(tokens))
        self._to_drop = 0 if is_last else self._to_drop - dropped
        self.available += len(tokens) - dropped
        self._encoded.append((tokens[dropped:], is_last))


@dataclass
class Feeder:
    """Reads, cuts and encodes the documents of one source for all its streams in this process.

    Attributes:
        lanes: Number of lanes in the whole job, over all ranks.
        repeat: Whether the source starts over when all its documents were read.
        max_document_bytes: Longer documents are cut into pieces that are documents of their own.
    """

    source: DocumentSource
    order: DocumentOrder
    encoder: Encoder
    policy: BadRowPolicy
    lanes: int
    repeat: bool
    max_document_bytes: int

    def __post_init__(self) -> None:
        self.streams: list[TokenStream] = []
        # Pessimistic until documents were seen: the first reads are small, whatever the documents turn out to be.
        self._mean_size = float(_ENCODE_BYTES)
        self._documents_seen = 0
        self._fruitless = 0
        # Seeing this many documents in a row without one token means that there is none to be had.
        self._patience = min(10_000, 4 * len(self.source) + 100)

    def fill(self, stream: TokenStream, count: int) -> None:
        """Makes ``count`` tokens available in ``stream``, unless it ends before; other streams profit.

        Raises:
            DataError: If a bad row is an error, or nothing but bad rows is found.
        """
        while stream.available < count and not stream.ended:
            hungry = [other for other in self.streams if other is not stream and other.available < count]
            self._encode_batch([stream, *(other for other in hungry if not other.ended)])

    def _encode_batch(self, streams: list[TokenStream]) -> None:
        batch: list[tuple[TokenStream, _Piece]] = []
        size = 0
        while size < _ENCODE_BYTES:
            self._read([stream for stream in streams if not stream._pieces])
            waiting = [stream for stream in streams if stream._pieces]
            if not waiting:
                break
            for stream in waiting:
                piece = stream._pieces.popleft()
                batch.append((stream, piece))
                size += max(piece.size, _LEAST_SIZE)
                if size >= _ENCODE_BYTES:
                    break
        encoded = iter(self.encoder.encode([piece.record for _, piece in batch if piece.record is not None]))
        for stream, piece in batch:
            tokens = _NO_TOKENS if piece.record is None else next(encoded)
            stream._add(tokens, piece.is_last)
            self._watch(len(tokens))
        for stream in streams:
            stream.ended = not stream._pieces and self._is_exhausted(stream)

    def _read(self, streams: list[TokenStream]) -> None:
        """Reads the next few documents of those streams that have more, or of the first among them."""
        streams = [stream for stream in streams if not self._is_exhausted(stream)]
        if not streams:
            return
        # As many documents as fill one call of the encoder, but no more than twice those that the guess rests on.
        total = int(_ENCODE_BYTES / max(self._mean_size, 1.0))
        total = max(1, min(total, self._documents_seen + 1, _READ_DOCUMENTS))
        streams = streams[:total]
        depth = total // len(streams)
        positions = [
            (stream, stream.lane + (stream._next_document + ahead) * self.lanes)
            for stream in streams
            for ahead in range(depth)
        ]
        if not self.repeat:
            positions = [(stream, position) for stream, position in positions if position < len(self.source)]
        documents = self.order.documents(np.array([position for _, position in positions], dtype=np.int64))
        for (stream, _), record in zip(positions, self.source.read(documents.tolist()), strict=True):
            stream._next_document += 1
            stream._pieces.extend(self._pieces_of(record))

    def _pieces_of(self, record: dict[str, Any] | BadRow) -> list[_Piece]:
        if isinstance(record, BadRow):
            self.policy.skip(record)
            return [_Piece(None, 0, True)]
        text = record.get(TEXT)
        if not isinstance(text, str):
            return [_Piece(record, int(self._mean_size), True)]
        self._documents_seen += 1
        self._mean_size += (len(text) - self._mean_size) / min(self._documents_seen, 64)
        texts = list(cut_text(text, self.max_document_bytes))
        if len(texts) == 1:
            return [_Piece(record, len(text), True)]
        self.policy.count(
            "too long, cut into pieces",
            f"{self.source.name}: a document of {len(text):,} characters is over data.max_document_bytes",
        )
        return [_Piece({**record, TEXT: text}, len(text), i == len(texts) - 1) for i, text in enumerate(texts)]

    def _is_exhausted(self, stream: TokenStream) -> bool:
        return not self.repeat and stream.lane + stream._next_document * self.lanes >= len(self.source)

    def _watch(self, tokens: int) -> None:
        self._fruitless = 0 if tokens else self._fruitless + 1
        if self.repeat and self._fruitless > self._patience:
            reasons = ", ".join(self.policy.examples.values()) or "no tokens in them"
            raise DataError(
                f"{self.source.name}: {self._fruitless} documents in a row are unusable; mend the source ({reasons})"
            )
