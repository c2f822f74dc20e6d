"""Text of several sources up to a budget of characters, for what learns from text without being a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flame.data.order import HOLE, DocumentOrder
from flame.data.sources.open import SourceConfig, open_source
from flame.data.sources.records import TEXT, BadRow, BadRowPolicy, DocumentSource
from flame.errors import DataError

MAX_DOCUMENT_BYTES = 1 << 20  # longer documents come in pieces
_DOCUMENTS_PER_READ = 64


@dataclass
class TextsRead:
    """What has been read of one source so far."""

    name: str
    documents: int = 0
    characters: int = 0
    shortened: int = 0
    """Documents of which only the beginning was taken."""
    exhausted: bool = False


class BudgetedTexts:
    """The texts of sources, in an order that depends on the arguments alone.

    The next document comes from the source that has given the fewest characters for its weight, so that a budget is
    shared out however large the sources are; a source that ends leaves its share to the others. With a budget, the
    documents of a source come shuffled, else a corpus sorted by subject would be learned from by its beginning.

    Args:
        sources: The sources; ``weight`` is the share of the characters.
        max_characters: Characters to read in all; 0 for everything, once.
        max_document_characters: Characters to take of a document; 0 for all of it.
        on_bad_row: ``error``, or ``skip`` to count records that cannot be used.
        seed: Draws the order.

    Raises:
        DataError: A source cannot be opened, or holds token ids.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        max_characters: int = 0,
        max_document_characters: int = 0,
        on_bad_row: str = "skip",
        seed: int = 0,
    ) -> None:
        self._sources = [open_source(source, (TEXT,), MAX_DOCUMENT_BYTES) for source in sources]
        for source in self._sources:
            if source.tokenized:
                raise DataError(f"'{source.name}' holds token ids, and text is needed: name what they were made of")
        self._weights = [source.weight for source in sources]
        self._max_characters = max_characters
        self._max_document = max_document_characters
        self._seed = seed
        self.bad_rows = BadRowPolicy(on_bad_row)
        self.read = [TextsRead(source.name) for source in self._sources]

    @property
    def characters(self) -> int:
        """Characters given so far."""
        return sum(read.characters for read in self.read)

    def __iter__(self) -> Iterator[str]:
        """Yields texts until the budget is used up, the last one cut to fit.

        Raises:
            DataError: A record cannot be used and ``on_bad_row`` is ``error``, or there is no text at all.
        """
        streams = [self._documents(number, source) for number, source in enumerate(self._sources)]
        while open_streams := [number for number, read in enumerate(self.read) if not read.exhausted]:
            left = self._max_characters - self.characters
            if self._max_characters and left <= 0:
                return
            number = min(open_streams, key=lambda i: self.read[i].characters / self._weights[i])
            read, text = self.read[number], next(streams[number], None)
            if text is None:
                read.exhausted = True
                continue
            taken = text[: self._max_document or None]
            read.shortened += len(taken) < len(text)
            if self._max_characters:
                taken = taken[:left]
            read.documents += 1
            read.characters += len(taken)
            yield taken
        if not self.characters:
            names = ", ".join(read.name for read in self.read)
            reasons = "; ".join(self.bad_rows.examples.values())
            raise DataError(f"there is no text in {names}{f' ({reasons})' if reasons else ''}: name other sources")

    def _documents(self, number: int, source: DocumentSource) -> Iterator[str]:
        shuffle = bool(self._max_characters)
        order = DocumentOrder(len(source), self._seed, number, shuffle=shuffle, block=source.block if shuffle else 1)
        for start in range(0, order.epoch, _DOCUMENTS_PER_READ):
            ordinals = np.arange(start, min(start + _DOCUMENTS_PER_READ, order.epoch))
            indices = order.documents(order.positions(0, 1, ordinals))
            for record in source.read([int(index) for index in indices if index != HOLE]):
                if isinstance(record, BadRow):
                    self.bad_rows.skip(record)
                else:
                    yield record[TEXT]
