"""Counting what a step keeps and drops, with examples, for the report."""

import functools
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document
from tokenizers import Tokenizer

from flame.data.prepare.documents import write_json

EXAMPLE_CHARACTERS = 400
_SAMPLED_CHARACTERS = 1 << 16  # of one document


@dataclass(frozen=True)
class Counting:
    """How a step counts, and where the counts go.

    Args:
        name: What the report calls the step.
        notes: Folder of one JSON file per rank.
        tokenizer: Path of a ``tokenizer.json``; empty to count no tokens.
        sample: One document in so many is tokenized for the estimate.
        sample_kept: Whether kept documents are tokenized as well, which one step does for all.
        examples: Dropped documents kept of every reason and rank.
    """

    name: str
    notes: Path
    tokenizer: str = ""
    sample: int = 16
    examples: int = 3
    sample_kept: bool = False


class Tally:
    """The counts of one step and one rank."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        self._kept: dict[str, _Count] = defaultdict(_Count)
        self._dropped: dict[str, dict[str, _Count]] = defaultdict(lambda: defaultdict(_Count))
        self._examples: dict[str, list[dict[str, str]]] = defaultdict(list)
        self._extra: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def keep(self, document: Document) -> None:
        """Counts a document that goes on."""
        kept = self._kept[document.metadata.get("source", "")]
        if self._counting.sample_kept:
            self._count(kept, document)
        else:  # every document comes here once for every step
            kept.documents += 1
            kept.bytes += utf8_bytes(document.text)

    def drop(self, document: Document, reason: str, detail: str = "") -> None:
        """Counts a document that ends here, and keeps the first ones as examples."""
        self._count(self._dropped[reason][document.metadata.get("source", "")], document)
        examples = self._examples[reason]
        if len(examples) < self._counting.examples:
            text = document.text[:EXAMPLE_CHARACTERS]
            examples.append({"id": document.id, "text": text, "detail": detail})

    def add(self, group: str, key: str, value: int = 1) -> None:
        """Adds to a figure of the step's own, such as the documents of a language."""
        self._extra[group][key] += value

    def save(self, rank: int, seconds: float) -> None:
        """Writes the counts of a finished rank."""
        kept = {source: count.as_list() for source, count in self._kept.items()}
        dropped = {
            reason: {source: count.as_list() for source, count in sources.items()}
            for reason, sources in self._dropped.items()
        }
        value: dict[str, Any] = {
            "kept": kept,
            "dropped": dropped,
            "examples": self._examples,
            "extra": self._extra,
            "seconds": seconds,
        }
        write_json(self._counting.notes / f"{rank:05d}.json", value)

    def _count(self, count: "_Count", document: Document) -> None:
        text = document.text
        size = utf8_bytes(text)
        count.documents += 1
        count.bytes += size
        counting = self._counting
        if counting.tokenizer and zlib.crc32(document.id.encode()) % counting.sample == 0:
            sampled = text[:_SAMPLED_CHARACTERS]
            count.sampled_bytes += size if len(sampled) == len(text) else utf8_bytes(sampled)
            count.sampled_tokens += len(_tokenizer(counting.tokenizer).encode(sampled, add_special_tokens=False).ids)


def utf8_bytes(text: str) -> int:
    """Length of a text in UTF-8; a surrogate, which has none, counts 3."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@dataclass(slots=True)
class _Count:
    documents: int = 0
    bytes: int = 0
    sampled_bytes: int = 0
    sampled_tokens: int = 0

    def as_list(self) -> list[int]:
        return [self.documents, self.bytes, self.sampled_bytes, self.sampled_tokens]


@functools.lru_cache(2)
def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer.from_file(path)
