"""Lists of documents to drop, and documents less those that are on one.

A document's number is ``rank << 32 | position``: where it lies in what its stage reads. Numbers in order are the order
of the corpus.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from flame.data.prepare.documents import Documents, write_json
from flame.data.prepare.reporting.tally import EXAMPLE_CHARACTERS, Counting, Tally
from flame.data.prepare.steps import CountedFilter
from flame.files import atomic

POSITION_BITS = 32
_POSITIONS = (1 << POSITION_BITS) - 1
_PAIRS = 10  # shown by the report

Pair = tuple[int, int]
"""Numbers of the document that is kept and of one dropped for it."""


def number_of(rank: int, position: int) -> int:
    """A document's number."""
    return rank << POSITION_BITS | position


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes a ``.npy`` file that is whole or absent."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


@dataclass(frozen=True)
class DropList:
    """A folder with sorted numbers of dropped documents in ``.npy`` files (uint64), and of some pairs to show."""

    folder: Path

    def save(self, part: int, kept: np.ndarray, dropped: np.ndarray) -> None:
        """Writes one part of the list.

        Args:
            part: Number of the part.
            kept: For every dropped document, the number of the one that stays for it; uint64 [documents].
            dropped: Numbers of the dropped documents, uint64 [documents].
        """
        save_array(self.folder / f"{part:05d}.npy", np.sort(dropped.astype(np.uint64)))
        order = np.lexsort((dropped, kept))
        _, firsts = np.unique(kept[order], return_index=True)
        shown = order[firsts[:_PAIRS]]  # of as many clusters, since one may be huge
        write_json(self.folder / f"{part:05d}.json", np.stack([kept[shown], dropped[shown]], axis=1).tolist())

    def positions(self, rank: int) -> set[int]:
        """Returns the places in a rank of what is dropped there."""
        first, last = number_of(rank, 0), number_of(rank + 1, 0)
        found: set[int] = set()
        for path in sorted(self.folder.glob("*.npy")):
            numbers = np.load(path, mmap_mode="r")
            start, stop = np.searchsorted(numbers, np.array([first, last], np.uint64))
            found.update((numbers[start:stop] - np.uint64(first)).tolist())
        return found

    def pairs(self) -> list[Pair]:
        """Returns the pairs to show, the same few for every reader."""
        stored = [tuple(pair) for path in sorted(self.folder.glob("*.json")) for pair in json.loads(path.read_text())]
        return sorted(stored)[:_PAIRS]


class DropListed(CountedFilter):
    """Drops the documents of a list, and writes down the texts of the pairs to show.

    Args:
        counting: How it counts.
        drops: The list; it need not be there before the step runs.
        reason: Why they are dropped, for the report.
        shown: Folder for the texts of pairs.
    """

    def __init__(self, counting: Counting, drops: DropList, reason: str, shown: Path) -> None:
        super().__init__(counting)
        self.drops = drops
        self.reason = reason
        self.shown = shown

    def begin(self, rank: int) -> None:
        """Loads the rank's part of the list."""
        self._dropped = self.drops.positions(rank)
        self._rank = rank
        numbers = {number for pair in self.drops.pairs() for number in pair}
        self._wanted = {number & _POSITIONS for number in numbers if number >> POSITION_BITS == rank}
        self._noted = self._dropped | self._wanted
        self._seen: dict[int, dict[str, str]] = {}

    def judge(self, document: Document, position: int) -> str | None:
        """Drops what is on the list."""
        if position in self._wanted:
            self._seen[number_of(self._rank, position)] = {
                "id": document.id,
                "text": document.text[:EXAMPLE_CHARACTERS],
            }
        return self.reason if position in self._dropped else None

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Passes on the other documents; without a clock for each, which would take longer than to look it up."""
        self.begin(rank)
        tally = Tally(self.counting)
        for position, document in enumerate(data):
            if position in self._noted and (reason := self.judge(document, position)):
                tally.drop(document, reason)
                continue
            tally.keep(document)
            yield document
        tally.save(rank, 0.0)
        write_json(self.shown / f"{rank:05d}.json", self._seen)


def shown_pairs(drops: DropList, shown: Path) -> list[dict[str, dict[str, str]]]:
    """Returns the texts of the pairs to show, once the documents have been read: ``kept`` and ``dropped`` of each."""
    texts: dict[str, dict[str, str]] = {}
    for path in sorted(shown.glob("*.json")):
        texts |= json.loads(path.read_text(encoding="utf-8"))
    return [{"kept": texts[str(kept)], "dropped": texts[str(dropped)]} for kept, dropped in drops.pairs()]


def cluster_sizes(sizes: np.ndarray) -> dict[str, dict[str, int]]:
    """Counts clusters by their size, as the report reads it."""
    values, counts = np.unique(sizes, return_counts=True)
    return {"sizes": {str(size): int(count) for size, count in zip(values.tolist(), counts.tolist(), strict=True)}}


@dataclass(frozen=True)
class FilteredDocuments(Documents):
    """Documents as filters leave them, which run whenever they are read: nothing is written anew."""

    filters: tuple[PipelineStep, ...] = ()

    @classmethod
    def of(cls, documents: Documents, step: PipelineStep) -> "FilteredDocuments":
        """Returns ``documents`` with one filter more."""
        before = documents.filters if isinstance(documents, FilteredDocuments) else ()
        return cls(documents.folder, documents.tasks, (*before, step))

    def reader(self) -> PipelineStep:
        """Returns the step whose rank r yields what is left of the documents of file r."""
        return _Chain([super().reader(), *self.filters])


class _Chain(PipelineStep):
    """Several steps in place of one."""

    type = "READER"
    name = "documents, filtered"

    def __init__(self, steps: Sequence[PipelineStep]) -> None:
        super().__init__()
        self.steps = steps

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Runs the steps one after the other."""
        for step in self.steps:
            data = step(data, rank, world_size)
        yield from data
