"""Counts of what was written, for the report."""

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Amount:
    """How much there is of something."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0

    def add(self, size: int, tokens: int) -> None:
        """Counts a document."""
        self.documents += 1
        self.bytes += size
        self.tokens += tokens


@dataclass
class Written:
    """What one task wrote."""

    splits: dict[str, Amount] = field(default_factory=lambda: defaultdict(Amount))
    files: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    sources: dict[str, Amount] = field(default_factory=lambda: defaultdict(Amount))
    lengths: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    left_over: int = 0
    """Tokens at the ends of shards that fill no packed row."""

    def add(self, split: str, source: str, size: int, tokens: int | None = None) -> None:
        """Counts a document of ``size`` bytes; its length is counted in tokens if they are known."""
        self.splits[split].add(size, tokens or 0)
        self.sources[source].add(size, tokens or 0)
        length = size if tokens is None else tokens
        self.lengths[str(1 << max(0, length.bit_length() - 1))] += 1

    def as_json(self) -> dict[str, Any]:
        """Returns the counts as the report sums them up over tasks."""
        splits = {name: asdict(amount) | {"files": self.files[name]} for name, amount in self.splits.items()}
        sources = {name: asdict(amount) for name, amount in self.sources.items()}
        return splits | {"sources": sources, "lengths": self.lengths, "left_over": {"tokens": self.left_over}}
