"""Micro-batches of one rank: its share of every global batch, read and encoded."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flame.data.examples.batches import BatchPlan, Chosen, Place, batches
from flame.data.examples.example import Arrays, Example, collate
from flame.data.sources.records import BadRow, BadRowPolicy
from flame.errors import DataError


class MicroBatch(NamedTuple):
    """What a lane gives at its turn."""

    lane: int
    arrays: Arrays
    place: Place
    """Where the stream is behind the global batch that this is a part of."""
    has_ended: bool
    """Whether there are no examples left, so that this is padding only."""
    examples: list[Chosen]
    """What it is made of; bad ones are left out of it."""


@dataclass(frozen=True)
class Share:
    """What a rank reads of a plan, and from where on.

    Lanes take turns at its micro-batches, so that each can be made by a process of its own.
    """

    plan: BatchPlan
    place: Place
    pieces: tuple[int, ...]
    """Which pieces of every global batch are this rank's."""
    of: int
    """Pieces of a global batch, over all ranks."""
    lanes: int
    on_bad_row: str

    def maker(self, states: dict[int, np.ndarray]) -> "ExampleMaker":
        """Makes what the lanes in ``states`` give."""
        return ExampleMaker(self, list(states))


class ExampleMaker:
    """Makes the micro-batches of some lanes of a share, without end."""

    def __init__(self, share: Share, lanes: Sequence[int]):
        self.policy = BadRowPolicy(share.on_bad_row)
        self.tally: Counter[str] = Counter()
        """Steps that are an example's (``steps``), those of the batches with padding (``padded``), ``examples``."""
        self._share = share
        self._lanes = lanes
        self._bad = 0  # examples in a row that could not be used

    def __iter__(self) -> Iterator[MicroBatch]:
        share, plan = self._share, self._share.plan
        turn, place = 0, share.place
        # Every worker looks at all batches: what is left out for its length is counted by one of them.
        silent = BadRowPolicy("skip")
        for chosen, place in batches(plan, share.place, self.policy if 0 in self._lanes else silent):
            parts = [part.tolist() for part in np.array_split(np.arange(len(chosen)), share.of)]
            for piece in share.pieces:
                if (lane := turn % share.lanes) in self._lanes:
                    yield self._made(lane, [chosen[index] for index in parts[piece]], place)
                turn += 1
        blank = collate([plan.encoder.blank()], plan.encoder.inputs_name)
        while True:
            if (lane := turn % share.lanes) in self._lanes:
                yield MicroBatch(lane, blank, place, True, [])
            turn += 1

    def _made(self, lane: int, chosen: list[Chosen], place: Place) -> MicroBatch:
        plan = self._share.plan
        used: list[Chosen] = []
        examples: list[Example] = []
        for one in chosen:
            example = self._encoded(one)
            if example is not None:
                used.append(one)
                examples.append(example)
        if not examples:
            return MicroBatch(lane, collate([plan.encoder.blank()], plan.encoder.inputs_name), place, False, [])
        arrays = collate(examples, plan.encoder.inputs_name)
        mask = arrays[0]["attention_mask"]
        self.tally.update(examples=len(examples), steps=int(mask.sum()), padded=mask.size)
        return MicroBatch(lane, arrays, place, False, used)

    def _encoded(self, one: Chosen) -> Example | None:
        plan = self._share.plan
        source = plan.sources[one.source]
        record = source.read([one.document])[0]
        where = source.where(one.document)
        made = record if isinstance(record, BadRow) else plan.encoder.encode(record, plan.key(one), where)
        if isinstance(made, Example) and len(made.values) > plan.longest and not plan.cuts:
            detail = f"{len(made.values)} steps where {one.steps} were told, training.seq_len = {plan.longest}"
            made = BadRow("longer than training.seq_len", where, detail)
        if isinstance(made, BadRow):
            self._bad += 1
            self.policy.skip(made)
            if self._bad > min(10_000, 2 * sum(map(len, plan.sources)) + 100):
                raise DataError(f"{self._bad} examples in a row cannot be used, the last one because of: {made}")
            return None
        self._bad = 0
        return Example(made.values[: plan.longest], made.labels) if plan.cuts else made
