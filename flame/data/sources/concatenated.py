"""Several sources as one collection of documents (cf. nanochat's TaskMixture and TaskSequence)."""

from collections.abc import Callable, Sequence

import numpy as np

from flame.data.sources.records import DocumentSource, Record
from flame.errors import DataError


class ConcatenatedSource:
    """The documents of several sources, one source after the other.

    Args:
        sources: At least one; all of text, or all of token ids.
        name: What messages call the collection.

    Raises:
        DataError: Some hold text and others token ids.
    """

    def __init__(self, sources: Sequence[DocumentSource], name: str = ""):
        self.sources = list(sources)
        self.name = name or ", ".join(source.name for source in sources)
        self.tokenized = sources[0].tokenized
        odd = next((source for source in sources if source.tokenized != self.tokenized), None)
        if odd is not None:
            kinds = ("token ids", "text") if self.tokenized else ("text", "token ids")
            raise DataError(
                f"'{sources[0].name}' holds {kinds[0]} and '{odd.name}' {kinds[1]}: sources of both kinds can only be "
                'mixed by tokens, set data.mix = "tokens"'
            )
        blocks = {source.block for source in sources}
        self.block = blocks.pop() if len(blocks) == 1 else 1
        self.starts = np.cumsum([0] + [len(source) for source in sources])
        """Number of the first document of every source, and of all documents: int64 ``[sources + 1]``."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def source_of(self, index: int) -> int:
        """Number of the source that a document is from."""
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the documents with these numbers, in this order."""
        records: list[Record | None] = [None] * len(indices)
        for number, places, own in self._shares(indices):
            for place, record in zip(places, self.sources[number].read(own), strict=True):
                records[place] = record
        return [record for record in records if record is not None]

    @property
    def read_tokens(self) -> Callable[[Sequence[int] | np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
        """``read`` without an object per document, if all sources have it; see ``DocumentSource``."""
        return self._read_tokens if all(hasattr(source, "read_tokens") for source in self.sources) else None

    def _read_tokens(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shares = self._shares(indices)
        parts = [self.sources[number].read_tokens(own) for number, _, own in shares]  # type: ignore[attr-defined]
        lengths = np.zeros(len(indices), np.int64)
        for (_, places, _), (_, own) in zip(shares, parts, strict=True):
            lengths[places] = own
        stops = np.cumsum(lengths)
        tokens = np.empty(int(lengths.sum()), np.int32)
        for (_, places, _), (held, own) in zip(shares, parts, strict=True):
            # Where in `tokens` every token of this source goes: runs of its documents, one after the other.
            starts = (stops - lengths)[places] - (np.cumsum(own) - own)
            tokens[np.repeat(starts, own) + np.arange(len(held))] = held
        return tokens, lengths

    def prefetch(self, indices: Sequence[int]) -> None:
        """Passes the hint on to the sources."""
        for number, _, own in self._shares(indices):
            self.sources[number].prefetch(own)

    def where(self, index: int) -> str:
        """File (or dataset) and row."""
        number = self.source_of(index)
        return self.sources[number].where(index - int(self.starts[number]))

    def _shares(self, indices: Sequence[int] | np.ndarray) -> list[tuple[int, list[int], list[int]]]:
        """What every source has to do: its number, the places in ``indices``, and its own document numbers."""
        wanted = np.asarray(indices, np.int64)
        numbers = np.searchsorted(self.starts, wanted, side="right") - 1
        shares = []
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            shares.append((number, places.tolist(), (wanted[places] - self.starts[number]).tolist()))
        return shares
