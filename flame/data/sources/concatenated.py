"""Several sources as one collection of documents (cf. nanochat's TaskMixture and TaskSequence)."""

from collections.abc import Sequence

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

    def prefetch(self, indices: Sequence[int]) -> None:
        """Passes the hint on to the sources."""
        for number, _, own in self._shares(indices):
            self.sources[number].prefetch(own)

    def where(self, index: int) -> str:
        """File (or dataset) and row."""
        number = self.source_of(index)
        return self.sources[number].where(index - int(self.starts[number]))

    def _shares(self, indices: Sequence[int]) -> list[tuple[int, list[int], list[int]]]:
        """What every source has to do: its number, the places in ``indices``, and its own document numbers."""
        wanted = np.asarray(indices, np.int64)
        numbers = np.searchsorted(self.starts, wanted, side="right") - 1
        shares = []
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            shares.append((number, places.tolist(), (wanted[places] - self.starts[number]).tolist()))
        return shares
