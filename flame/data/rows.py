"""Rows: lanes in turn, each giving its next packed row and the state it is in afterwards.

A lane's state is int64 ``[1 + 2 * sources]``: rows given, then (documents finished, tokens used of the current
document) for every source. Nothing else is needed to go on from there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flame.data.encoder import Encoder
from flame.data.order import DocumentOrder, choose_source
from flame.data.packing import blank_row, pack_continuous, pack_documents
from flame.data.sources.records import BadRowPolicy, DocumentSource
from flame.data.streams import Feeder, TokenStream


@dataclass(frozen=True)
class RowPlan:
    """All that decides what rows look like; the same on every rank and in every worker process."""

    sources: list[DocumentSource]
    weights: list[float]
    encoder: Encoder
    seq_len: int
    context_len: int
    varlen: bool
    lanes: int
    """Number of lanes in the whole job."""
    seed: int
    shuffle: bool
    repeat: bool
    """Whether sources start over; if not, every document is given once."""
    on_bad_row: str
    max_document_bytes: int

    def initial_state(self) -> np.ndarray:
        """Returns the state of a lane that has given nothing yet."""
        return np.zeros(1 + 2 * len(self.sources), np.int64)


class Row(NamedTuple):
    """What a lane gives at its turn."""

    lane: int
    values: np.ndarray
    """int32 ``[planes, seq_len]``, as packing lays it out."""
    state: np.ndarray
    """The lane's state after this row."""
    is_blank: bool
    """Whether the lane has ended and the row is padding only."""


class RowMaker:
    """Makes the rows of some lanes.

    Args:
        plan: What rows look like.
        states: The lanes to make rows for, in the order of their turns, each with its state.
    """

    def __init__(self, plan: RowPlan, states: dict[int, np.ndarray]):
        self.policy = BadRowPolicy(plan.on_bad_row)
        self._plan = plan
        self._states = {lane: state.copy() for lane, state in states.items()}
        self._feeders = [self._feeder(number) for number in range(len(plan.sources))]
        # [lane][source]
        self._streams = {lane: self._streams_of(lane, state) for lane, state in states.items()}

    def __iter__(self) -> Iterator[Row]:
        """Yields rows without end, the lanes taking turns; a lane that has ended gives blank rows."""
        lanes = list(self._states)
        turn = next_turn([self._states[lane] for lane in lanes])
        while True:
            yield self._next_row(lanes[turn])
            turn = (turn + 1) % len(lanes)

    def _next_row(self, lane: int) -> Row:
        plan, state, streams = self._plan, self._states[lane], self._streams[lane]
        values = None
        weights = list(plan.weights)
        while values is None and any(weights):
            source = choose_source(weights, plan.seed, lane, int(state[0]))
            stream = streams[source]
            self._feeders[source].fill(stream, plan.seq_len + 1)
            if plan.varlen:
                values = pack_documents(stream, plan.seq_len, plan.context_len)
            else:
                values = pack_continuous(stream, plan.seq_len)
            state[1 + 2 * source : 3 + 2 * source] = stream.finished, stream.used
            weights[source] = 0.0  # if it had nothing left, another source steps in
        state[0] += 1
        is_blank = values is None
        if values is None:
            values = blank_row(3 if plan.varlen else 2, plan.seq_len, plan.context_len)
        return Row(lane, values, state.copy(), is_blank)

    def _feeder(self, number: int) -> Feeder:
        plan = self._plan
        source = plan.sources[number]
        return Feeder(
            source=source,
            order=DocumentOrder(len(source), plan.seed, number, plan.shuffle),
            encoder=plan.encoder,
            policy=self.policy,
            lanes=plan.lanes,
            repeat=plan.repeat,
            max_document_bytes=plan.max_document_bytes,
        )

    def _streams_of(self, lane: int, state: np.ndarray) -> list[TokenStream]:
        streams = []
        for number, feeder in enumerate(self._feeders):
            stream = TokenStream(lane, finished=int(state[1 + 2 * number]), used=int(state[2 + 2 * number]))
            feeder.streams.append(stream)
            streams.append(stream)
        return streams


def next_turn(states: list[np.ndarray]) -> int:
    """Returns which of several lanes is next: the first of those that have given the fewest rows."""
    return int(np.argmin([state[0] for state in states]))
