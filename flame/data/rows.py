"""Rows: lanes in turn, each giving its next packed row and the state it is in afterwards.

A lane's state is int64 ``[1 + 3 * sources]``: rows given, then for every source the state of its packer (documents
finished, tokens used of the current document, rows given of the current block, or -1 if the source has ended: that
decides where later rows come from, and is only known once a row was wanted of it). Nothing else is needed to go on
from there.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from flame.data.encoder import Encoder
from flame.data.feeder import Feeder
from flame.data.lane_states import next_turn
from flame.data.mixture import Mixture
from flame.data.order import DocumentOrder
from flame.data.packers import ENDED, STATE_SIZE, BlockPacker, RowShape, StreamPacker
from flame.data.packing import blank_row
from flame.data.sources.records import BadRowPolicy, DocumentSource
from flame.data.streams import TokenStream


@dataclass(frozen=True)
class RowPlan:
    """All that decides what rows look like; the same on every rank and in every worker process."""

    sources: list[DocumentSource]
    encoder: Encoder
    epochs: list[float | None]
    """Of every source: most passes over it, None for endless ones."""
    mixture: Mixture
    shape: RowShape
    lanes: int
    """Number of lanes in the whole job."""
    seed: int
    shuffle: bool
    on_bad_row: str
    max_document_bytes: int
    is_endless: bool
    """Whether a lane that has ended gives blank rows for as long as it is asked; if not, all is given once."""
    mix: str

    def order(self, number: int) -> DocumentOrder:
        """The order of a source's documents; blocks are smaller than the source's where lanes would lack some."""
        source = self.sources[number]
        block = max(1, min(source.block, len(source) // self.lanes))
        return DocumentOrder(len(source), self.seed, number, self.shuffle, block)

    def layout(self) -> dict[str, Any]:
        """What the states of lanes depend on, for comparison with the job that goes on from them."""
        numbers = range(len(self.sources))
        shape, mixture = self.shape, self.mixture
        return {
            "lanes": self.lanes,
            "rows_per_step": mixture.rows_per_step,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "tokenizer": getattr(self.encoder, "fingerprint", ""),
            "max_document_bytes": self.max_document_bytes,
            "documents": [len(source) for source in self.sources],
            "blocks": [self.order(number).block for number in numbers],
            "epochs": self.epochs,
            "weights": [list(mixture.weights), *([start, list(weights)] for start, weights in mixture.stages)],
            "mix": self.mix,
            "packing": shape.packing,
            "shape": None if shape.packing == "stream" else [shape.seq_len, shape.context_len, shape.too_long],
        }

    def maker(self, states: dict[int, np.ndarray]) -> "RowMaker":
        """Makes the rows of some lanes from their states on."""
        return RowMaker(self, states)

    def initial_state(self) -> np.ndarray:
        """Returns the state of a lane that has given nothing yet."""
        return np.zeros(1 + STATE_SIZE * len(self.sources), np.int64)


class DocumentSpan(NamedTuple):
    """Where in a row some tokens of a document are: positions ``start`` to ``stop``."""

    start: int
    stop: int
    source: int
    """Number of the ``[[data.sources]]`` table."""
    document: int
    """Number of the document in it."""


class Row(NamedTuple):
    """What a lane gives at its turn."""

    lane: int
    source: int
    """Number in the plan of the source it comes from, -1 if it is blank."""
    values: np.ndarray
    """int32 ``[planes, seq_len]``, as packing lays it out."""
    state: np.ndarray
    """The lane's state after this row."""
    spans: list[DocumentSpan] | None = None
    """What it is made of, if rows are traced."""

    @property
    def is_blank(self) -> bool:
        """Whether the lane has ended and the row is padding only."""
        return self.source < 0


class RowMaker:
    """Makes the rows of some lanes.

    Args:
        plan: What rows look like.
        states: The lanes to make rows for, in the order of their turns, each with its state.
        trace: Whether rows say which documents they are made of.
    """

    def __init__(self, plan: RowPlan, states: dict[int, np.ndarray], trace: bool = False):
        self.policy = BadRowPolicy(plan.on_bad_row)
        self.tally: Counter[str] = Counter()
        """What packing has counted; see ``BlockPacker``."""
        self._plan = plan
        self._trace = trace
        self._states = {lane: state.copy() for lane, state in states.items()}
        self._ended: dict[int, frozenset[int]] = {}
        self._feeders = [self._feeder(number) for number in range(len(plan.sources))]
        # [lane][source]
        self._packers = {lane: self._packers_of(lane, state) for lane, state in states.items()}
        self._blank = blank_row(plan.shape.planes, plan.shape.seq_len, plan.shape.longest)

    def __iter__(self) -> Iterator[Row]:
        """Yields rows without end, the lanes taking turns; a lane that has ended gives blank rows."""
        lanes = list(self._states)
        turn = next_turn(list(self._states.values()))
        while True:
            yield self._next_row(lanes[turn])
            turn = (turn + 1) % len(lanes)

    def _next_row(self, lane: int) -> Row:
        state, packers = self._states[lane], self._packers[lane]
        if lane not in self._ended:
            self._ended[lane] = self._ended_before(lane)
        row = int(state[0])
        state[0] += 1
        while (source := self._plan.mixture.choose(lane, row, self._ended[lane])) is not None:
            packer = packers[source]
            values = packer.next_row()
            at = 1 + STATE_SIZE * source
            state[at : at + STATE_SIZE] = packer.state
            if values is not None:
                spans = self._spans(source, packer) if self._trace else None
                return Row(lane, source, values, state.copy(), spans)
            state[at + STATE_SIZE - 1] = ENDED
            self._ended[lane] |= {source}  # another source steps in
        return Row(lane, -1, self._blank, state.copy(), [] if self._trace else None)

    def _ended_before(self, lane: int) -> frozenset[int]:
        """The sources that have ended by the lane's state, unless they have more by now: ``epochs`` may have grown."""
        given = self._states[lane][STATE_SIZE::STATE_SIZE]
        flagged = {number: self._packers[lane][number] for number in np.flatnonzero(given == ENDED).tolist()}
        return frozenset(number for number, packer in flagged.items() if packer.feeder.has_ended(packer.stream))

    def _spans(self, source: int, packer: StreamPacker | BlockPacker) -> list[DocumentSpan]:
        starts = getattr(self._plan.sources[source], "starts", None)
        spans = []
        documents = packer.feeder.documents(packer.stream, [span.ordinal for span in packer.spans])
        for (start, stop, _), document in zip(packer.spans, documents, strict=True):
            number = source
            if starts is not None:
                number = self._plan.sources[source].source_of(document)  # type: ignore[attr-defined]
                document -= int(starts[number])
            spans.append(DocumentSpan(start, stop, number, document))
        return spans

    def _feeder(self, number: int) -> Feeder:
        plan = self._plan
        return Feeder(
            plan.sources[number],
            plan.order(number),
            plan.encoder,
            self.policy,
            lanes=plan.lanes,
            epochs=plan.epochs[number],
            max_document_bytes=plan.max_document_bytes,
        )

    def _packers_of(self, lane: int, state: np.ndarray) -> list[StreamPacker | BlockPacker]:
        packers: list[StreamPacker | BlockPacker] = []
        shape = self._plan.shape
        for number, feeder in enumerate(self._feeders):
            finished, used, given = (int(value) for value in state[1 + STATE_SIZE * number :][:STATE_SIZE])
            stream = TokenStream(lane, finished, used)
            feeder.streams.append(stream)
            if shape.packing == "stream":
                packers.append(StreamPacker(feeder, stream, shape, self._trace))
            else:
                packers.append(BlockPacker(feeder, stream, shape, number, max(given, 0), self.tally))
        return packers
