"""Which documents the streams of a source read next: looked up for all of them together, and announced early."""

from collections.abc import Sequence

import numpy as np

from flame.data.order import HOLE, DocumentOrder
from flame.data.sources.records import DocumentSource
from flame.data.streams import TokenStream

_AHEAD = 256  # documents of a stream that are looked up, and announced to the source, at once


class Upcoming:
    """The documents to come of a source's streams.

    Args:
        source: Hears which documents will be asked for.
        order: Their order.
        lanes: Number of lanes in the whole job, over all ranks.
        epochs: Passes over the source, or None for endless ones.
    """

    def __init__(self, source: DocumentSource, order: DocumentOrder, lanes: int, epochs: float | None):
        self._source = source
        self._order = order
        self._lanes = lanes
        # Positions; some of a block may be holes, so that less than one block may be no document at all.
        self._limit = None if epochs is None else max(round(epochs * order.epoch), order.block)
        self._ahead = max(16, min(_AHEAD, 2 * len(source) // lanes), 2 * order.block)

    @property
    def is_endless(self) -> bool:
        """Whether the source starts over for ever."""
        return self._limit is None

    @property
    def block(self) -> int:
        """Documents that stay together."""
        return self._order.block

    def numbers(self, stream: TokenStream, ordinals: Sequence[int]) -> list[int]:
        """The numbers of the documents with these ordinals in a stream."""
        positions = self._order.positions(stream.lane, self._lanes, np.array(ordinals, np.int64))
        return self._order.documents(positions).tolist()

    def is_over(self, stream: TokenStream) -> bool:
        """Whether a stream has no document to come."""
        return stream.is_exhausted and not stream.upcoming.shape[1]

    def take(self, stream: TokenStream, count: int, block: int, others: Sequence[TokenStream]) -> np.ndarray:
        """Takes a stream's next documents, and announces those after them.

        Args:
            stream: The stream.
            count: How many, unless fewer are left.
            block: Goes on to the end of a block of so many.
            others: Streams that may look ahead with this one.

        Returns:
            int64 ``[2, count]``: ordinals and numbers.
        """
        while stream.upcoming.shape[1] < count + block and not stream.is_exhausted:
            self._look_ahead(stream, others)
        if block > 1 and count < stream.upcoming.shape[1]:
            until = (int(stream.upcoming[0, count - 1]) // block + 1) * block
            count = int(stream.upcoming[0].searchsorted(until))
        taken, stream.upcoming = stream.upcoming[:, :count], stream.upcoming[:, count:]
        if stream.upcoming.shape[1] < self._ahead // 2 and not stream.is_exhausted:
            self._look_ahead(stream, others)
        return taken

    def _look_ahead(self, stream: TokenStream, others: Sequence[TokenStream]) -> None:
        """Looks up documents of a stream, and of others that will soon need it: together, that costs a fraction."""
        enough = 3 * self._ahead // 4
        short = [other for other in others if other is not stream and other.upcoming.shape[1] < enough]
        streams = [stream, *(other for other in short if not other.is_exhausted)]
        ordinals = np.array([[one.next_ordinal] for one in streams]) + np.arange(self._ahead)  # [streams, ahead]
        positions = self._order.positions(np.array([[one.lane] for one in streams]), self._lanes, ordinals)
        documents = self._order.documents(positions.ravel()).reshape(positions.shape)
        found = documents != HOLE
        if self._limit is not None:
            found &= positions < self._limit
        for row, one in enumerate(streams):
            kept = found[row]
            one.upcoming = np.concatenate([one.upcoming, np.stack([ordinals[row, kept], documents[row, kept]])], axis=1)
            one.next_ordinal += self._ahead
            one.is_exhausted = self._limit is not None and int(positions[row, -1]) >= self._limit
        # In the order in which they will be wanted: streams take turns.
        self._source.prefetch(documents.T[found.T].tolist())
