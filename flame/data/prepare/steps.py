"""The base of every step that drops documents."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from flame.data.prepare.reporting.tally import Counting, Tally


class CountedFilter(PipelineStep):
    """Keeps, changes or drops documents one by one, and notes for the report what it drops.

    Args:
        counting: What the report calls the step, and where its notes go.
    """

    type = "FILTER"

    def __init__(self, counting: Counting) -> None:
        self.name = counting.name
        super().__init__()
        self.counting = counting

    def begin(self, rank: int) -> None:  # noqa: B027  most filters have nothing to prepare
        """Prepares a rank, before its first document."""

    @abstractmethod
    def judge(self, document: Document, position: int) -> str | None:
        """Returns a short reason to drop the document, or None to keep it; may change its text.

        Args:
            document: The document.
            position: Its place in the rank.
        """

    def details(self, document: Document) -> str:
        """Says more of a document that was just dropped, for the examples."""
        return ""

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Passes on what is kept; the notes of the rank are written at its end."""
        self.begin(rank)
        self.tally = Tally(self.counting)
        for position, document in enumerate(data):
            with self.track_time():
                reason = self.judge(document, position)
                if reason is None:
                    self.tally.keep(document)
                else:
                    self.tally.drop(document, reason, self.details(document))
            if reason is None:
                yield document
        self.tally.save(rank, self.stats.time_stats.total)
