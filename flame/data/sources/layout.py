"""Records that carry the layout of conversations which the job names for their source."""

from collections.abc import Sequence

from flame.data.sources.records import LAYOUT, DocumentSource, Record


class WithLayout:
    """A source whose records tell their layout under ``"@layout"``.

    Args:
        source: Of text or conversations.
        layout: The source's ``layout`` in the job.
    """

    tokenized = False

    def __init__(self, source: DocumentSource, layout: str):
        self.name, self.block = source.name, source.block
        self._source = source
        self._layout = layout

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the documents with these numbers, in this order."""
        return [
            {**record, LAYOUT: self._layout} if isinstance(record, dict) else record
            for record in self._source.read(indices)
        ]

    def prefetch(self, indices: Sequence[int]) -> None:
        """Passes the hint on to the source."""
        self._source.prefetch(indices)

    def where(self, index: int) -> str:
        """File (or dataset) and row."""
        return self._source.where(index)
