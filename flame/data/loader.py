"""The loader: micro-batches for one data-parallel rank, and a state that fits any number of ranks and workers.

Row ``r`` of the global batch at step ``s`` comes from lane ``(s % lanes_per_row) * global_batch_size + r``. A rank owns
a contiguous range of ``r``; its lanes take turns in the order in which training uses them, so that its stream of rows,
cut into micro-batches, is all there is to it.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from flame.config import Source
from flame.data.base_loader import BaseLoader, DataloaderConfig
from flame.data.batch import Batch
from flame.data.encoder import Encoder
from flame.data.lane_states import merge_states, pack_states, unpack_states
from flame.data.packing import IGNORE
from flame.data.plan import DataConfig, make_plan
from flame.data.resuming import START_OVER, compare
from flame.data.rows import Row, RowMaker, RowPlan
from flame.errors import DataError

_TOKENS_AHEAD = 1 << 17
"""Of every worker: while one is busy with a long document, the others must not have to wait for their turns."""


class Loader(BaseLoader[Row]):
    """Micro-batches of one rank; made by ``build_loader``.

    Iterating yields ``(inputs, labels)``: ``inputs["input_ids"]`` int64 ``[B, T]``, with document boundaries also
    ``inputs["position_ids"]`` int64 ``[B, T]``; ``labels`` int64 ``[B, T]``, already shifted, -100 where not scored.
    A new iteration goes on after the last batch handed out; if sources do not repeat, it is a new pass over them.
    """

    def __init__(self, plan: RowPlan, lanes: Sequence[int], local_batch_size: int, dataloader: DataloaderConfig):
        super().__init__(dataloader)
        self._plan = plan
        self._lanes = list(lanes)
        self._local_batch_size = local_batch_size
        self._states = {lane: plan.initial_state() for lane in self._lanes}
        batches_per_step = len(self._lanes) // plan.mixture.lanes_per_row // local_batch_size
        # What the batches of the last step did away with: the states of their lanes before them.
        self._before: deque[dict[int, np.ndarray]] = deque(maxlen=max(1, batches_per_step))
        self._is_resumed = False

    def __iter__(self) -> Iterator[Batch]:
        self._stop_workers()
        if not (self._plan.is_endless or self._is_resumed):
            self._states = {lane: self._plan.initial_state() for lane in self._lanes}
        self._is_resumed = False
        self._before.clear()
        tokens = self._local_batch_size * self._plan.shape.seq_len
        ahead = min(max(2, _TOKENS_AHEAD // tokens), 64)
        return self._batches(self._made(self._plan, self._states, at_once=self._local_batch_size, ahead=ahead))

    @property
    def plan(self) -> RowPlan:
        """How rows are made."""
        return self._plan

    def traced_rows(self) -> RowMaker:
        """Gives this rank's next rows with their ``spans``, made in this process; batches are not affected."""
        return RowMaker(self._plan, self._states, trace=True)

    def blank(self) -> Batch:
        """A batch of which nothing is scored."""
        ids = torch.zeros(self._local_batch_size, self._plan.shape.seq_len, dtype=torch.long)
        return {"input_ids": ids}, torch.full_like(ids, IGNORE)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the data after the last batch handed out, whatever has been read ahead.

        It is that of all lanes of the job, so that any number of ranks can go on from it: ranks tell each other, which
        makes this a collective call in a process group, and all return the same, of which a checkpoint keeps one.
        """
        packed = pack_states(self._states)
        if len(self._lanes) < self._plan.lanes and dist.is_available() and dist.is_initialized():
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, packed)
            packed = merge_states(parts)
        return {"layout": json.dumps(self._plan.layout()), "lanes": packed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state; lanes of other ranks in it are ignored.

        Raises:
            DataError: If the state belongs to a job with other lanes or sources.
        """
        if not state_dict:
            return  # torchtitan's way of saying that the checkpoint holds no data state
        self._check_layout(json.loads(state_dict["layout"]))
        saved = unpack_states(state_dict["lanes"])
        missing = [lane for lane in self._lanes if lane not in saved]
        if missing:
            raise DataError(f"the checkpoint's data state lacks lane {missing[0]}: merge the states of all its ranks")
        self._stop_workers()
        self._states = {lane: saved[lane] for lane in self._lanes}
        self._before.clear()
        self._is_resumed = True

    def take_back_step(self) -> None:
        """Makes the state that before the last step, of which all batches were blank on every rank: a run that goes on
        with more ``epochs`` does that step with documents. The current iteration must not go on afterwards."""
        while self._before:
            self._states.update(self._before.pop())

    def close(self) -> None:
        """Ends the worker processes and logs what was skipped; safe to call again."""
        self._stop_workers()
        self._record.summarise(self._plan.shape.seq_len)

    def _check_layout(self, saved: dict[str, Any]) -> None:
        layout = self._plan.layout()
        if saved["lanes"] != layout["lanes"] or len(saved["documents"]) != len(layout["documents"]):
            raise DataError(
                f"the checkpoint's data state has {saved['lanes']} lanes and {len(saved['documents'])} sources, the "
                f"job has {layout['lanes']} and {len(layout['documents'])}: keep global_batch_size, lanes_per_row and "
                f"sources, {START_OVER}"
            )
        # What older states do not tell is not compared.
        compare({**layout, **saved}, layout, _KEPT, _CHANGES)

    def _batches(self, rows: Iterator[Row]) -> Iterator[Batch]:
        # A blank batch before a useful one is handed out, so that the n-th batch is the same step on every rank.
        blanks: list[list[Row]] = []
        useful = False
        while len(blanks) * self._local_batch_size < len(self._lanes):
            batch = list(islice(rows, self._local_batch_size))
            if all(row.is_blank for row in batch):
                blanks.append(batch)
                continue
            yield from map(self._handed_out, (*blanks, batch))
            blanks, useful = [], True
        # Other ranks may have documents; in training, the trainer finds out.
        if not (useful or self._plan.is_endless) and len(self._lanes) == self._plan.lanes:
            raise DataError(f"no usable documents in the sources: {str(self._record) or 'no tokens in them'}")
        # In training, other ranks may have documents left, and this one takes part in their steps.
        while self._plan.is_endless:
            yield from map(self._handed_out, blanks)
            blanks = [list(islice(rows, self._local_batch_size))]
        self._stop_workers()

    def _handed_out(self, rows: list[Row]) -> Batch:
        self._before.append({row.lane: self._states[row.lane] for row in rows})
        self._states.update((row.lane, row.state) for row in rows)
        self.is_blank = all(row.is_blank for row in rows)
        return self._collated(rows)

    def _collated(self, rows: list[Row]) -> Batch:
        planes, length = rows[0].values.shape
        batch = torch.empty(planes, len(rows), length, dtype=torch.long, pin_memory=self._pin_memory)
        filled = batch.numpy()
        for number, row in enumerate(rows):
            filled[:, number] = row.values
        inputs = {"input_ids": batch[0]}
        if planes > 2:
            inputs["position_ids"] = batch[2]
        return inputs, batch[1]


_KEPT = {
    "mix": "data.mix",
    "packing": "data.packing",
    "rows_per_step": "training.global_batch_size",
    "seed": "debug.seed",
    "shuffle": "data.shuffle",
}
"""What a state is meaningless without, by its key in ``RowPlan.layout``, and its key in the job."""

_CHANGES = {
    "documents": "the numbers of documents changed, so some may be seen twice or never",
    "blocks": "the documents read together changed, so some may be seen twice or never",
    "shape": "the length of rows changed, so some documents may be seen twice or never",
    "tokenizer": "the tokenizer changed, so documents under way go on at another place",
    "max_document_bytes": "data.max_document_bytes changed, so documents under way may go on at another place",
    "weights": "the weights changed",
    "epochs": "the most passes over the sources changed",
}
"""What may change on the way, by its key in ``RowPlan.layout``, and is told."""


def build_loader(
    *,
    sources: Sequence[Source],
    data: DataConfig,
    encoder: Encoder,
    seq_len: int,
    context_len: int,
    varlen: bool,
    global_batch_size: int,
    local_batch_size: int,
    dp_rank: int,
    dp_world_size: int,
    seed: int,
    dataloader: DataloaderConfig,
    repeat: bool = True,
) -> Loader:
    """Builds the loader of one data-parallel rank.

    Args:
        sources: Where the documents come from, with weights that become shares of tokens.
        data: How sources are mixed and packed, shuffling, lanes, and what happens to bad rows.
        encoder: The task's way from records to token ids.
        seq_len: Tokens per row.
        context_len: Longest piece of a document with ``varlen``; 0 means ``seq_len``.
        varlen: Whether documents are isolated from each other within a row.
        global_batch_size: Rows per step, over all ranks.
        local_batch_size: Rows per micro-batch.
        dp_rank: This rank.
        dp_world_size: Number of data-parallel ranks.
        seed: Decides the order, together with the config.
        dataloader: Worker processes, how far they read ahead, and pinned memory.
        repeat: Whether this is training, in which sources start over forever or as often as their ``epochs`` say, or
            every document is given once (in one lane per row, without stages).

    Raises:
        DataError: If a source cannot be opened, or the sizes do not fit together.
    """
    if global_batch_size % (local_batch_size * dp_world_size):
        raise DataError(
            f"global_batch_size {global_batch_size} is not a multiple of {local_batch_size * dp_world_size}, the local "
            "batch times the data-parallel ranks: change one of them"
        )
    plan = make_plan(
        sources=sources,
        data=data,
        encoder=encoder,
        seq_len=seq_len,
        context_len=context_len,
        varlen=varlen,
        global_batch_size=global_batch_size,
        seed=seed,
        repeat=repeat,
    )
    share = global_batch_size // dp_world_size
    rows = range(dp_rank * share, (dp_rank + 1) * share)
    lanes = [turn * global_batch_size + row for turn in range(plan.lanes // global_batch_size) for row in rows]
    return Loader(plan, lanes, local_batch_size, dataloader)
