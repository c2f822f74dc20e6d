"""Dropping documents that share text with evaluation sets (as in Brown et al. 2020, appendix C)."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document

from flame.data.prepare.dedup.contamination import EvaluationText, cached_index
from flame.data.prepare.documents import write_json
from flame.data.prepare.options import Decontaminate
from flame.data.prepare.reporting.tally import Counting
from flame.data.prepare.steps import CountedFilter

_SHOWN_CHARACTERS = 200


class Decontaminated(CountedFilter):
    """Drops documents that contain an n-gram of an evaluation text.

    Args:
        counting: How it counts.
        options: What counts as containing.
        texts: The file of ``CollectTexts``.
        notes: Folder for counts by item.
        spared: Sources that are left alone.
    """

    def __init__(
        self, counting: Counting, options: Decontaminate, texts: Path, notes: Path, spared: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(counting)
        self.options = options
        self.texts = texts
        self.notes = notes
        self.spared = spared

    def begin(self, rank: int) -> None:
        """Makes the index."""
        with open(self.texts, encoding="utf-8") as file:
            texts = tuple(EvaluationText(*json.loads(line)) for line in file)
        self._index = cached_index(texts, self.options.n_grams, self.options.shortest)
        self._items: Counter[str] = Counter()
        self._detail = ""

    def judge(self, document: Document, position: int) -> str | None:
        """Looks for evaluation texts."""
        if document.metadata.get("source", "") in self.spared:
            return None
        match = self._index.find(document.text)
        if match is None:
            return None
        name, item, text = match.text
        self._items[f"{name}, item {item}: {text[:_SHOWN_CHARACTERS]}"] += 1
        self._detail = f"{name}, item {item}: '{match.words}'"
        return f"contains text of {name}"

    def details(self, document: Document) -> str:
        """Says which item was found, and the words."""
        return self._detail

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Passes on the other documents."""
        yield from super().run(data, rank, world_size)
        write_json(self.notes / f"{rank:05d}.json", {"items": dict(sorted(self._items.items()))})
