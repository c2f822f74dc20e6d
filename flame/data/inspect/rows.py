"""A job's rows as they come to training, each with what it is made of."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flame.config import JobConfig
from flame.data.inspect.lengths import source_of
from flame.data.loader import Loader
from flame.data.rows import DocumentSpan, Row
from flame.data.sources.records import DocumentSource


class PlacedRow(NamedTuple):
    """A row and its place in training."""

    step: int
    """Counted from 1."""
    number: int
    """In the global batch."""
    row: Row


class Rows:
    """The rows of all ranks, in the order of the global batches.

    Args:
        loader: Of one rank that acts for all.
        global_batch_size: Rows of a step.
    """

    def __init__(self, loader: Loader, global_batch_size: int):
        self.plan = loader.plan
        self._maker = loader.traced_rows()
        self._size = global_batch_size

    def __iter__(self) -> Iterator[PlacedRow]:
        """Yields rows until all sources have ended in all lanes. Raises ``DataError`` where training would."""
        blank = 0
        for number, row in enumerate(self._maker):
            blank = blank + 1 if row.is_blank else 0
            if blank >= self.plan.lanes:
                return
            yield PlacedRow(number // self._size + 1, number % self._size, row)

    @property
    def skipped(self) -> dict[str, int]:
        """Documents left out or cut so far, by reason."""
        return dict(self._maker.policy.counts)

    @property
    def examples(self) -> dict[str, str]:
        """One of them for every reason."""
        return dict(self._maker.policy.examples)

    @property
    def packed(self) -> dict[str, int]:
        """What packing by documents has counted so far; empty for a stream."""
        return {name: int(count) for name, count in self._maker.tally.items()}

    def where(self, span: DocumentSpan) -> str:
        """The file and row, or the like, that a document comes from."""
        return self.source(span.source).where(span.document)

    def source(self, number: int) -> DocumentSource:
        """A source of the job."""
        return source_of(self.plan, number)


def is_scored(row: Row) -> np.ndarray:
    """Of every token of a row, whether training learns to predict it: bool ``[T]``.

    It is the label of the token before it. Where a row cuts a document, the last label is of a token that is not there.
    """
    ids, labels = row.values[0], row.values[1]
    scored = np.append(False, labels[:-1] == ids[1:])
    if len(row.values) > 2:  # documents are isolated
        scored[[span.start for span in row.spans or []]] = False
    return scored


def source_names(config: JobConfig, validation: bool = False) -> list[str]:
    """The sources of a job by names that tell them apart."""
    sources = config.validation.sources if validation else config.data.sources
    names = [" ".join([source.path, *([source.name] if source.name else [])]) for source in sources]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]
