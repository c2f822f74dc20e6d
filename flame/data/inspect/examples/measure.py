"""Figures of a job's examples: shares by source, lengths, padding, and what labels are like."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flame.data.examples.loader import ExampleLoader
from flame.data.inspect.examples.placed import PlacedBatch, PlacedExample
from flame.data.inspect.measure import QUANTILES


class ExampleMeasurement:
    """What is counted while micro-batches go by.

    Args:
        loader: Where they come from.
        mix: How sources are combined: ``data.mix``.
        names: Of the sources.
        told: What labels say, for people.
    """

    def __init__(self, loader: ExampleLoader, mix: str, names: Sequence[str], told: Callable[[Sequence[float]], str]):
        self._loader, self._mix, self._names, self._told = loader, mix, list(names), told
        self._totals: Counter[str] = Counter()
        self._examples = [0] * len(names)
        self._labels = [0] * len(names)
        self._wanted = np.zeros(len(names))
        # [source]: numbers of examples
        self._seen: list[set[int]] = [set() for _ in names]
        self._said: Counter[str] = Counter()
        self._numbers: list[float] = []
        self._single = True
        self.padding: list[float] = []
        """Of every micro-batch, the share of its positions that is padding."""
        self.lengths: list[list[float]] = [[] for _ in names]
        """Of every source, lengths of the different examples seen; there after ``figures``."""

    def add(self, batch: PlacedBatch) -> None:
        """Counts a micro-batch."""
        padded, steps = batch.longest * len(batch.examples), sum(len(one.values) for one in batch.examples)
        self._totals["steps"] = max(self._totals["steps"], batch.step)
        self._totals.update(batches=1, blank=not batch.examples, padded=padded, positions=steps)
        if padded:
            self.padding.append(1 - steps / padded)
        for example in batch.examples:
            self._add(example)
        if self._mix == "tokens":
            # The mixture counts examples.
            plan = self._loader.plan
            weights = np.array(plan.mixture.weights_at((batch.step - 1) * plan.rows + 1))
            self._wanted += weights / weights.sum() * len(batch.examples)

    def _add(self, example: PlacedExample) -> None:
        source, labels = example.chosen.source, example.labels
        self._examples[source] += 1
        self._labels[source] += len(labels)
        self._seen[source].add(example.chosen.document)
        if labels.dtype.kind == "f":
            self._numbers += labels.tolist()
            return
        self._single &= len(labels) == 1
        if self._single:
            self._said[self._told(labels.tolist())] += 1

    def figures(self) -> dict[str, Any]:
        """All that was counted, for JSON."""
        totals, plan = self._totals, self._loader.plan
        total = sum(self._examples)
        self.lengths = [
            source.lengths(np.array(sorted(seen), np.int64)).tolist() if seen else []
            for source, seen in zip(plan.sources, self._seen, strict=True)
        ]
        return {
            "steps": totals["steps"],
            "micro_batches": totals["batches"],
            "blank_micro_batches": totals["blank"],
            "examples": total,
            "unit": plan.encoder.unit,
            "mix": self._mix,
            "positions": totals["positions"],
            "padding": 1 - totals["positions"] / max(1, totals["padded"]),
            "most_positions": plan.budget or None,
            "sources": [self._source(number, total) for number in range(len(self._names))],
            "classes": dict(self._said.most_common()) if self._single else {},
            "numbers": _spread(self._numbers),
            "skipped": self._loader.skipped,
            "skipped_such_as": self._loader.skipped_such_as,
        }

    @property
    def numbers(self) -> list[float]:
        """The labels, where they are numbers to predict."""
        return self._numbers

    def _source(self, number: int, total: int) -> dict[str, Any]:
        lengths, wanted = self.lengths[number], float(self._wanted.sum())
        examples, mean = self._examples[number], float(np.mean(lengths)) if lengths else 0.0
        return {
            "name": self._names[number],
            "examples": examples,
            "share": examples / max(1, total),
            "wanted": float(self._wanted[number]) / wanted if wanted else None,
            "seen": len(self._seen[number]),
            "in_all": len(self._loader.plan.sources[number]),
            "mean_length": mean,
            "total_length": mean * examples,
            "labels": self._labels[number],
            "lengths": {name: float(np.quantile(lengths, at)) for name, at in QUANTILES.items()} if lengths else {},
        }


def _spread(numbers: Sequence[float]) -> dict[str, float]:
    if not numbers:
        return {}
    values = np.array(numbers)
    return {
        "mean": float(values.mean()),
        "deviation": float(values.std()),
        "least": float(values.min()),
        "greatest": float(values.max()),
    }
