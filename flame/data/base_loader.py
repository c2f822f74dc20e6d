"""What every loader does alike: takes rows or micro-batches from where they are made, and counts what is left out."""

import weakref
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torchtitan.components.dataloader import BaseDataLoader

from flame.data.record import Record
from flame.data.worker import Assignment, Plan, Turn, messages
from flame.data.worker_pool import WorkerPool
from flame.errors import DataError

Made = TypeVar("Made", bound=Turn)


class DataloaderConfig(Protocol):
    """The ``[training.dataloader]`` table of a job, as far as loaders read it."""

    num_workers: int
    prefetch_factor: int | None
    pin_memory: bool


class BaseLoader(BaseDataLoader, Generic[Made]):
    """A loader whose rows or micro-batches are made by worker processes, or in this one if the job asks for none."""

    def __init__(self, dataloader: DataloaderConfig):
        self.is_blank = False
        """Whether the last batch is padding only, since what it comes from has ended."""
        self._record = Record()
        self._dataloader = dataloader
        self._pin_memory = dataloader.pin_memory and torch.cuda.is_available()
        self._close_pool: weakref.finalize | None = None

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out (or cut) so far, by reason."""
        return dict(self._record.skipped)

    @property
    def skipped_such_as(self) -> dict[str, str]:
        """One of them for every reason."""
        return dict(self._record.examples)

    @property
    def packed(self) -> dict[str, int]:
        """What was counted so far; see ``BlockPacker`` and ``ExampleMaker.tally``."""
        return dict(self._record.packed)

    def _made(self, plan: Plan, states: dict[int, np.ndarray], *, at_once: int, ahead: int) -> Iterator[Made]:
        """Gives what the lanes give from these states on, in turn and without end.

        Args:
            plan: What makes it.
            states: The lanes in the order of their turns, each with its state.
            at_once: How much of it fills a micro-batch, for workers send that much at once between them.
            ahead: How many times that each worker makes ahead of need if the job does not say.
        """
        workers = min(self._dataloader.num_workers, len(states))
        if not workers:
            return self._made_here(Assignment(plan, states, at_once, messages_ahead=0))
        pool = WorkerPool(
            plan,
            states,
            count=workers,
            rows_per_message=max(1, at_once // workers),
            messages_ahead=self._dataloader.prefetch_factor or ahead,
            note=self._record.note,
        )
        self._close_pool = weakref.finalize(self, pool.close)
        return iter(pool)

    def _made_here(self, assignment: Assignment) -> Iterator[Made]:
        for message in messages(assignment):
            self._record.note(message)
            if message.error:
                raise DataError(message.error)
            yield from message.rows

    def _stop_workers(self) -> None:
        if self._close_pool is not None:
            self._close_pool()
            self._close_pool = None
