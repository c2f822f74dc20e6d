"""The loader: micro-batches for one data-parallel rank, and a state that fits any number of ranks and workers.

Row ``r`` of the global batch at step ``s`` comes from lane ``(s % lanes_per_row) * global_batch_size + r``. A rank owns
a contiguous range of ``r``; its lanes take turns in the order in which training uses them, so that its stream of rows,
cut into micro-batches, is all there is to it.
"""

import logging
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torchtitan.components.dataloader import BaseDataLoader

from flame.data.batch import Batch
from flame.data.encoder import Encoder
from flame.data.rows import Row, RowPlan
from flame.data.sources.open import SourceConfig, open_source
from flame.data.worker import Assignment, Message, messages
from flame.data.worker_pool import WorkerPool
from flame.errors import DataError

logger = logging.getLogger(__name__)


class DataConfig(Protocol):
    """The ``[data]`` table of a job, as far as the loader reads it."""

    shuffle: bool
    lanes_per_row: int
    on_bad_row: Any
    max_document_bytes: int


class DataloaderConfig(Protocol):
    """The ``[training.dataloader]`` table of a job, as far as the loader reads it."""

    num_workers: int
    prefetch_factor: int | None
    pin_memory: bool


class SkipLog:
    """Counts bad rows by reason, and tells of each reason once."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def note(self, message: Message) -> None:
        """Takes in what a message says about bad rows."""
        for reason, example in message.examples.items():
            if reason not in self.counts:
                logger.warning("%s; more rows like it are only counted", example)
        self.counts.update(message.counts)

    def summarise(self) -> None:
        """Logs the counts, if there are any."""
        if self.counts:
            logger.warning("rows skipped or cut: %s", self)

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common())


class Loader(BaseDataLoader):
    """Micro-batches of one rank; made by ``build_loader``.

    Iterating yields ``(inputs, labels)``: ``inputs["input_ids"]`` int64 ``[B, T]``, with document boundaries also
    ``inputs["position_ids"]`` int64 ``[B, T]``; ``labels`` int64 ``[B, T]``, already shifted, -100 where not scored.
    A new iteration goes on after the last batch handed out; if sources do not repeat, it is a new pass over them.
    """

    def __init__(self, plan: RowPlan, lanes: Sequence[int], local_batch_size: int, dataloader: DataloaderConfig):
        self._skips = SkipLog()
        self._plan = plan
        self._lanes = list(lanes)
        self._local_batch_size = local_batch_size
        self._num_workers = min(dataloader.num_workers, len(self._lanes))
        self._prefetch = dataloader.prefetch_factor or 2
        self._pin_memory = dataloader.pin_memory and torch.cuda.is_available()
        self._states = {lane: plan.initial_state() for lane in self._lanes}
        self._is_resumed = False
        self._close_pool: weakref.finalize | None = None

    @property
    def skipped(self) -> dict[str, int]:
        """Rows left out (or cut) so far, by reason."""
        return dict(self._skips.counts)

    def __iter__(self) -> Iterator[Batch]:
        self._stop_workers()
        if not (self._plan.repeat or self._is_resumed):
            self._states = {lane: self._plan.initial_state() for lane in self._lanes}
        self._is_resumed = False
        return self._batches(self._rows())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the state of this rank's lanes after the last batch handed out, whatever has been read ahead.

        Keys name lanes of the whole job, so that the dicts of all ranks merge into one, of which ranks of another
        world size take their own.
        """
        states = {_key(lane): torch.from_numpy(state.copy()) for lane, state in self._states.items()}
        return {"layout": torch.from_numpy(self._layout()), **states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state; lanes of other ranks in it are ignored.

        Raises:
            DataError: If the state belongs to a job with other lanes or sources.
        """
        if not state_dict:
            return  # torchtitan's way of saying that the checkpoint holds no data state
        layout, saved = self._layout(), state_dict["layout"].numpy()
        if len(layout) != len(saved) or layout[0] != saved[0]:
            raise DataError(
                f"the checkpoint's data state has {saved[0]} lanes and {len(saved) - 1} sources, the job has "
                f"{layout[0]} and {len(layout) - 1}: keep global_batch_size, lanes_per_row and sources, or start the "
                "data over with checkpoint.exclude_from_loading = ['dataloader']"
            )
        if not np.array_equal(layout, saved):
            logger.warning("the number of documents changed since the checkpoint: some may be seen twice or never")
        missing = [_key(lane) for lane in self._lanes if _key(lane) not in state_dict]
        if missing:
            raise DataError(f"the checkpoint's data state lacks {missing[0]}: merge the states of all its ranks")
        self._stop_workers()
        self._states = {lane: state_dict[_key(lane)].numpy().astype(np.int64) for lane in self._lanes}
        self._is_resumed = True

    def close(self) -> None:
        """Ends the worker processes and logs what was skipped; safe to call again."""
        self._stop_workers()
        self._skips.summarise()

    def _layout(self) -> np.ndarray:
        return np.array([self._plan.lanes, *map(len, self._plan.sources)], np.int64)

    def _rows(self) -> Iterator[Row]:
        if self._num_workers == 0:
            return self._local_rows()
        pool = WorkerPool(
            self._plan,
            self._states,
            count=self._num_workers,
            rows_per_message=max(1, self._local_batch_size // self._num_workers),
            messages_ahead=self._prefetch,
            note=self._skips.note,
        )
        self._close_pool = weakref.finalize(self, pool.close)
        return iter(pool)

    def _local_rows(self) -> Iterator[Row]:
        for message in messages(Assignment(self._plan, self._states, rows_per_message=1, messages_ahead=0)):
            self._skips.note(message)
            if message.error:
                raise DataError(message.error)
            yield from message.rows

    def _batches(self, rows: Iterator[Row]) -> Iterator[Batch]:
        # A blank batch before a useful one is handed out, so that the n-th batch is the same step on every rank.
        blanks: list[list[Row]] = []
        useful = False
        while len(blanks) * self._local_batch_size < len(self._lanes):
            batch = list(islice(rows, self._local_batch_size))
            if all(row.is_blank for row in batch):
                blanks.append(batch)
                continue
            for held in (*blanks, batch):
                self._states.update((row.lane, row.state) for row in held)
                yield self._collate(held)
            blanks, useful = [], True
        if self.skipped and not useful:
            raise DataError(f"no usable documents in the sources: {self._skips}")
        self._stop_workers()

    def _collate(self, rows: list[Row]) -> Batch:
        planes = torch.from_numpy(np.stack([row.values for row in rows], axis=1).astype(np.int64))
        if self._pin_memory:
            planes = planes.pin_memory()
        inputs = {"input_ids": planes[0]}
        if len(planes) > 2:
            inputs["position_ids"] = planes[2]
        return inputs, planes[1]

    def _stop_workers(self) -> None:
        if self._close_pool is not None:
            self._close_pool()
            self._close_pool = None


def build_loader(
    *,
    sources: Sequence[SourceConfig],
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
        data: Shuffling, lanes and what happens to bad rows.
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
        repeat: Whether sources start over forever, or every document is given once (in one lane per row).

    Raises:
        DataError: If a source cannot be opened, or the sizes do not fit together.
    """
    _check(sources, global_batch_size, local_batch_size * dp_world_size)
    lanes_per_row = data.lanes_per_row if repeat else 1
    plan = RowPlan(
        sources=[open_source(source, getattr(encoder, "columns", None), data.max_document_bytes) for source in sources],
        weights=[float(source.weight) for source in sources],
        encoder=encoder,
        seq_len=seq_len,
        context_len=context_len or seq_len,
        varlen=varlen,
        lanes=global_batch_size * lanes_per_row,
        seed=seed,
        shuffle=data.shuffle,
        repeat=repeat,
        on_bad_row=data.on_bad_row,
        max_document_bytes=data.max_document_bytes,
    )
    for source in plan.sources:
        if repeat and len(source) < plan.lanes:
            logger.warning("%s: %d documents for %d lanes, so rows repeat others", source.name, len(source), plan.lanes)
    share = global_batch_size // dp_world_size
    rows = range(dp_rank * share, (dp_rank + 1) * share)
    lanes = [turn * global_batch_size + row for turn in range(lanes_per_row) for row in rows]
    return Loader(plan, lanes, local_batch_size, dataloader)


def _check(sources: Sequence[SourceConfig], global_batch_size: int, rows_at_once: int) -> None:
    weights = [source.weight for source in sources]
    if not sources:
        raise DataError("there is no data source: add a [[data.sources]] table with a path")
    if min(weights) < 0 or not any(weights):
        raise DataError(f"data source weights {weights}: make them positive")
    if global_batch_size % rows_at_once:
        raise DataError(
            f"global_batch_size {global_batch_size} is not a multiple of {rows_at_once}, the local batch times the "
            "data-parallel ranks: change one of them"
        )


def _key(lane: int) -> str:
    return f"lane_{lane:06d}"
