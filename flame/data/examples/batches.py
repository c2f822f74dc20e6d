"""Which examples a global batch consists of: a pure function of the plan and of where the stream of examples is.

Examples come in windows of some batches. Within a window they are sorted by length and cut into batches, which then
come in a random order: little padding, and yet a random stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from flame.data.examples.example import ExampleEncoder, ExampleSource, Key
from flame.data.mixture import Mixture
from flame.data.order import DocumentOrder, scattered
from flame.data.sources.records import BadRow, BadRowPolicy
from flame.errors import DataError

WINDOW = 16
"""Batches of a window, at most: one does not reach beyond an epoch, or examples would meet themselves."""


class Chosen(NamedTuple):
    """An example of a batch, before it is read."""

    source: int
    document: int
    ordinal: int
    """How many of its source came before it."""
    steps: int


@dataclass(frozen=True)
class Place:
    """Where the stream of global batches is."""

    given: tuple[int, ...]
    """Examples of every source before this window."""
    window: int = 0
    batch: int = 0
    """Batches of this window that are done."""


@dataclass(frozen=True)
class BatchPlan:
    """All that decides which examples a global batch has; the same on every rank and in every worker process."""

    sources: list[ExampleSource]
    encoder: ExampleEncoder
    epochs: list[float | None]
    """Of every source: most passes over it, None for endless ones."""
    mixture: Mixture
    rows: int
    """Most examples of a batch."""
    budget: int
    """Most steps of a batch, padding included; 0 for no limit."""
    longest: int
    """Most steps of an example."""
    cuts: bool
    """Whether a longer one is cut rather than left out."""
    seed: int
    shuffle: bool
    alters: bool
    """Whether examples are altered at random, as in training."""

    def order(self, number: int) -> DocumentOrder:
        """The order of a source's examples."""
        return DocumentOrder(len(self.sources[number]), self.seed, number, self.shuffle)

    def key(self, chosen: Chosen) -> Key | None:
        """What is drawn for an example depends on this."""
        return (self.seed, chosen.source, chosen.ordinal) if self.alters else None

    def start(self) -> Place:
        """The place of the first batch."""
        return Place((0,) * len(self.sources))

    @property
    def is_endless(self) -> bool:
        """Whether some source starts over for ever."""
        return any(epochs is None for epochs in self.epochs)


def batches(plan: BatchPlan, place: Place, policy: BadRowPolicy) -> Iterator[tuple[list[Chosen], Place]]:
    """Yields the global batches from a place on, each sorted by length, with the place behind it.

    Raises:
        DataError: all examples are too long, or one is and bad rows are errors.
    """
    fruitless = 0
    while True:
        chosen, given = _window(plan, place, policy)
        if given == place.given:
            return
        cut = _cut(plan, chosen)
        order = scattered(len(cut), plan.seed, place.window) if plan.shuffle else range(len(cut))
        behind = Place(given, place.window + 1)
        fruitless = 0 if cut else fruitless + sum(given) - sum(place.given)
        if fruitless > sum(map(len, plan.sources)):
            raise DataError(
                f"{plan.sources[0].name}: none of {fruitless} examples has at most training.seq_len = {plan.longest} "
                "steps: raise it"
            )
        for number, index in enumerate(order):
            if number >= place.batch:
                yield cut[index], replace(place, batch=number + 1) if number + 1 < len(cut) else behind
        place = behind


def _window(plan: BatchPlan, place: Place, policy: BadRowPolicy) -> tuple[list[Chosen], tuple[int, ...]]:
    """The examples of the window that a place is in, too long ones left out, and what is given after it."""
    given = np.array(place.given, np.int64)
    limits = [
        None if epochs is None else max(1, round(epochs * len(source)))
        for epochs, source in zip(plan.epochs, plan.sources, strict=True)
    ]
    wanted: list[list[int]] = [[] for _ in plan.sources]
    ended = frozenset(number for number, limit in enumerate(limits) if limit is not None and given[number] >= limit)
    first = int(given.sum())
    for row in range(first, first + plan.rows * max(1, min(WINDOW, sum(map(len, plan.sources)) // plan.rows))):
        source = plan.mixture.choose(0, row, ended)
        if source is None:
            break
        wanted[source].append(int(given[source]))
        given[source] += 1
        if given[source] == limits[source]:
            ended |= {source}
    chosen = [one for number, ordinals in enumerate(wanted) for one in _looked_up(plan, number, ordinals, policy)]
    return chosen, tuple(given.tolist())


def _looked_up(plan: BatchPlan, number: int, ordinals: list[int], policy: BadRowPolicy) -> Iterator[Chosen]:
    if not ordinals:
        return
    source = plan.sources[number]
    documents = plan.order(number).documents(np.array(ordinals, np.int64))
    keys = [(plan.seed, number, ordinal) for ordinal in ordinals] if plan.alters else None
    steps = plan.encoder.steps(source.lengths(documents), keys)
    for document, ordinal, count in zip(documents.tolist(), ordinals, steps.tolist(), strict=True):
        if count > plan.longest and not plan.cuts:
            detail = f"{count} steps, training.seq_len = {plan.longest}"
            policy.skip(BadRow("longer than training.seq_len", source.where(document), detail))
        else:
            yield Chosen(number, document, ordinal, min(count, plan.longest))


def _cut(plan: BatchPlan, chosen: list[Chosen]) -> list[list[Chosen]]:
    """Sorts a window by length and cuts it into batches within both limits."""
    found: list[list[Chosen]] = []
    for one in sorted(chosen, key=lambda one: one.steps):
        batch = found[-1] if found else []
        is_full = len(batch) >= plan.rows or (plan.budget and one.steps * (len(batch) + 1) > plan.budget)
        if is_full or not found:
            found.append([one])
        else:
            batch.append(one)
    return found
