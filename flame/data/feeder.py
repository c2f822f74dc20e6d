"""Feeding token streams: reads, cuts and encodes the documents of one source for all its streams in this process.

Streams share calls of the source and of the encoder, and sources hear early which documents will be asked for.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from flame.data.encoder import Encoder
from flame.data.order import DocumentOrder
from flame.data.sources.records import IDS, TEXT, BadRow, BadRowPolicy, DocumentSource, cut_text
from flame.data.streams import Piece, TokenStream
from flame.data.tiktoken_encoding import threads
from flame.data.upcoming import Upcoming
from flame.errors import DataError

_ENCODE_BYTES = 1 << 20  # text per call of the encoder: enough to keep all its threads busy
_READ_DOCUMENTS = 256  # documents per read of a source of text, at most
_READ_TOKENS = 1 << 20  # per read of a tokenized source, roughly
_STREAM_TOKENS = 1 << 15  # that a stream of one is filled to
_LEAST_SIZE = 256  # what a piece counts at least: rows that are empty or bad must not be read without end
_BYTES_PER_TOKEN = 4


class _Encoded(NamedTuple):
    """Pieces of one stream, as ``TokenStream.add`` takes them."""

    tokens: list[np.ndarray]
    ordinals: list[int]
    is_last: list[bool]


class Feeder:
    """Fills the streams of one source.

    Args:
        source: The documents.
        order: Their order.
        encoder: Makes token ids of records; not used if the source is tokenized.
        policy: What happens to bad rows.
        lanes: Number of lanes in the whole job, over all ranks.
        epochs: Passes over the source, or None for endless ones.
        max_document_bytes: Longer documents are cut into pieces that are documents of their own.
    """

    def __init__(
        self,
        source: DocumentSource,
        order: DocumentOrder,
        encoder: Encoder,
        policy: BadRowPolicy,
        *,
        lanes: int,
        epochs: float | None,
        max_document_bytes: int,
    ):
        self.source = source
        self.streams: list[TokenStream] = []
        self._upcoming = Upcoming(source, order, lanes, epochs)
        self._encoder = encoder
        # What else encoders read, they cut themselves: a text may stand beside what is encoded.
        self._reads_text = TEXT in (getattr(encoder, "columns", None) or ())
        self._policy = policy
        self._max_document_bytes = max_document_bytes
        # Pessimistic until documents were seen: the first reads are small, whatever the documents turn out to be.
        self._mean_size = float(_ENCODE_BYTES)
        self._documents_seen = self._tokens_seen = 0
        self._fruitless = 0
        # Seeing this many documents in a row of which none can be used means that there is none to be had.
        self.patience = min(10_000, 4 * len(source) + 100)

    def fill(self, stream: TokenStream, count: int) -> None:
        """Makes ``count`` tokens available in ``stream``, unless it ends before; other streams profit.

        Raises:
            DataError: If a bad row is an error, or nothing but bad rows is found.
        """
        while stream.available < count and not stream.ended:
            at = self.streams.index(stream)
            others = self.streams[at + 1 :] + self.streams[:at]
            ahead = max(count, self._tokens_ahead())
            hungry = [other for other in others if other.available < max(count, ahead // 2) and not other.ended]
            if self.source.tokenized:
                self._load_batch([stream, *hungry], ahead)
            else:
                self._encode_batch([stream, *hungry], ahead)

    def _tokens_ahead(self) -> int:
        """How far a stream that wants tokens is filled: by few, large calls, once it is clear that much is wanted."""
        most = _STREAM_TOKENS
        if not self.source.tokenized:
            # One thread gains nothing by large calls, and other worker processes would wait for this one's.
            most = _ENCODE_BYTES // _BYTES_PER_TOKEN // len(self.streams) if threads() > 1 else 0
        return min(most, self._tokens_seen // len(self.streams))

    def has_ended(self, stream: TokenStream) -> bool:
        """Whether not a token is left for a stream."""
        self.fill(stream, 1)
        return stream.available <= 0

    @property
    def is_endless(self) -> bool:
        """Whether the source starts over for ever."""
        return self._upcoming.is_endless

    def documents(self, stream: TokenStream, ordinals: Sequence[int]) -> list[int]:
        """The numbers of the documents with these ordinals in a stream."""
        return self._upcoming.numbers(stream, ordinals)

    # Tokenized sources

    def _load_batch(self, streams: list[TokenStream], count: int) -> None:
        """Reads documents for the first of these streams, and for others as long as the batch is small."""
        asked: list[tuple[TokenStream, np.ndarray]] = []
        total = 0.0
        for stream in streams:
            if total >= _READ_TOKENS:
                break
            missing = min(max(count - stream.available, 1), _READ_TOKENS) * _BYTES_PER_TOKEN
            documents = int(missing / max(self._mean_size, 1.0)) + 1
            taken = self._next_documents(stream, documents)
            asked.append((stream, taken))
            total += taken.shape[1] * self._mean_size / _BYTES_PER_TOKEN
        documents = np.concatenate([taken[1] for _, taken in asked])
        tokens, lengths = self._load(documents) if len(documents) else (np.empty(0, np.int32), documents)
        token, place = 0, 0
        for stream, taken in asked:
            own = lengths[place : place + taken.shape[1]]
            size = int(own.sum())
            stream.add(tokens[token : token + size], own, taken[0], np.ones(len(own), bool))
            stream.ended = self._upcoming.is_over(stream)
            token, place = token + size, place + len(own)
        if len(lengths):
            self._learn(len(lengths), len(tokens) * _BYTES_PER_TOKEN)
            self._watch(len(lengths), len(tokens))

    def _load(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of documents, one after the other, and the length of each."""
        read_tokens = getattr(self.source, "read_tokens", None)
        if read_tokens is not None:
            return read_tokens(documents)
        parts = [self._ids(record) for record in self.source.read(documents.tolist())]
        return np.concatenate(parts), np.array([len(part) for part in parts], np.int64)

    def _ids(self, record: dict[str, Any] | BadRow) -> np.ndarray:
        if isinstance(record, BadRow):
            self._policy.skip(record)
            return np.empty(0, np.int32)
        return record[IDS]

    # Sources that an encoder has to run on

    def _encode_batch(self, streams: list[TokenStream], count: int) -> None:
        """Encodes pieces for the first of these streams, and for others as long as the batch is small."""
        batch: list[tuple[TokenStream, Piece]] = []
        size = 0
        for at, stream in enumerate(streams):
            missing = max(count - stream.available, 1) * _BYTES_PER_TOKEN
            while missing > 0 and size < _ENCODE_BYTES:
                if not stream.pieces:
                    self._read([other for other in streams[at:] if not other.pieces], _ENCODE_BYTES - size, missing)
                if not stream.pieces:
                    break
                piece = stream.pieces.popleft()
                batch.append((stream, piece))
                missing -= max(piece.size, _LEAST_SIZE)
                size += max(piece.size, _LEAST_SIZE)
        parts: dict[TokenStream, _Encoded] = {}
        for (stream, piece), result in zip(batch, self._encode([piece for _, piece in batch]), strict=True):
            encoded = parts.setdefault(stream, _Encoded([], [], []))
            encoded.tokens.extend(result)
            encoded.ordinals.extend(repeat(piece.ordinal, len(result)))
            encoded.is_last.extend([*repeat(False, len(result) - 1), piece.is_last])
            self._watch(1, sum(map(len, result)))
        for stream, (tokens, ordinals, is_last) in parts.items():
            lengths = np.array([len(part) for part in tokens], np.int64)
            stream.add(np.concatenate(tokens), lengths, np.array(ordinals, np.int64), np.array(is_last, bool))
        for stream in streams:
            stream.ended = not stream.pieces and self._upcoming.is_over(stream)

    def _encode(self, pieces: list[Piece]) -> list[list[np.ndarray]]:
        """Encodes pieces; each becomes one array or, if the encoder splits it, several, and never none."""
        results: list[list[np.ndarray]] = [[np.empty(0, np.int32)] for _ in pieces]
        places = [place for place, piece in enumerate(pieces) if piece.record is not None]
        encoded: Sequence[Any] = self._encoder.encode([pieces[place].record or {} for place in places])
        for place, result in zip(places, encoded, strict=True):
            results[place] = self._parts(pieces[place], result)
        for reason, example in getattr(self._encoder, "drain", list)():
            self._policy.count(reason, f"{self.source.name}: {example}")
        return results

    def _parts(self, piece: Piece, result: np.ndarray | list[np.ndarray] | BadRow) -> list[np.ndarray]:
        if isinstance(result, BadRow):
            self._policy.skip(BadRow(result.reason, result.where or self.source.where(piece.document), result.detail))
            result = []
        parts = result if isinstance(result, list) else [result]
        if piece.record is not None and self._text_of(piece.record) is None:
            self._learn(1, sum(map(len, parts)) * _BYTES_PER_TOKEN)
        return parts or [np.empty(0, np.int32)]

    def _read(self, streams: list[TokenStream], room: int, missing: int) -> None:
        """Reads the next few documents of the first of these streams, and of others if that is not much."""
        # Documents that fill what is left of the encoder's call, but no more than twice those that the guess rests on.
        total = int(room / max(self._mean_size, 1.0))
        total = max(1, min(total, self._documents_seen + 1, _READ_DOCUMENTS))
        depth = min(total, int(missing / max(self._mean_size, 1.0)) + 1)
        asked = [(stream, self._next_documents(stream, depth, whole=False)) for stream in streams[: total // depth]]
        documents = [document for _, taken in asked for document in taken[1].tolist()]
        records = iter(self.source.read(documents) if documents else [])
        for stream, taken in asked:
            for ordinal, document in taken.T.tolist():
                stream.pieces.extend(self._pieces_of(next(records), ordinal, document))

    def _pieces_of(self, record: dict[str, Any] | BadRow, ordinal: int, document: int) -> list[Piece]:
        if isinstance(record, BadRow):
            self._policy.skip(record)
            return [Piece(None, 0, ordinal, document, True)]
        text = self._text_of(record)
        if text is None:
            return [Piece(record, int(self._mean_size), ordinal, document, True)]
        self._learn(1, len(text))
        texts = list(cut_text(text, self._max_document_bytes))
        if len(texts) == 1:
            return [Piece(record, len(text), ordinal, document, True)]
        self._policy.count(
            "too long, cut into pieces",
            f"{self.source.name}: a document of {len(text):,} characters is over data.max_document_bytes",
        )
        last = len(texts) - 1
        return [Piece({**record, TEXT: text}, len(text), ordinal, document, i == last) for i, text in enumerate(texts)]

    def _text_of(self, record: dict[str, Any]) -> str | None:
        """The text that the encoder reads, if it reads one."""
        text = record.get(TEXT) if self._reads_text else None
        return text if isinstance(text, str) else None

    # Both

    def _next_documents(self, stream: TokenStream, count: int, whole: bool = True) -> np.ndarray:
        """Takes a stream's next documents, int64 ``[2, count]``: ordinals and numbers.

        Args:
            stream: The stream.
            count: How many, unless fewer are left.
            whole: Whether to go on to the end of a block, unless blocks are large.
        """
        block = self._upcoming.block
        is_large = block * self._mean_size > _READ_TOKENS * _BYTES_PER_TOKEN
        return self._upcoming.take(stream, count, 1 if is_large or not whole else block, self.streams)

    def _learn(self, documents: int, size: float) -> None:
        """Takes the size of documents into the mean over the last 64 or so."""
        self._documents_seen += documents
        weight = min(1.0, documents / min(self._documents_seen, 64))
        self._mean_size += (size / documents - self._mean_size) * weight

    def _watch(self, documents: int, tokens: int) -> None:
        self._tokens_seen += tokens
        self._fruitless = 0 if tokens else self._fruitless + documents
        if self.is_endless and self._fruitless > self.patience:
            reasons = ", ".join(self._policy.examples.values()) or "no tokens in them"
            raise DataError(
                f"{self.source.name}: {self._fruitless} documents in a row are unusable; mend the source ({reasons})"
            )
