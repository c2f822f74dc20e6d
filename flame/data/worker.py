"""A worker process: makes the rows of some lanes and sends them ahead of need.

Started by ``worker_pool`` as a fresh interpreter, not a fork: it inherits no threads, locks or devices of the trainer,
imports neither torch nor transformers, and ends by itself when the trainer at the other end of the connection is gone.
"""

import os
import queue
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np

from flame.data.sources.records import BadRowPolicy
from flame.errors import DataError


class Turn(Protocol):
    """What a lane gives at its turn: a row, or a micro-batch of examples."""

    @property
    def lane(self) -> int: ...


class Maker(Protocol):
    """Makes what some lanes give, without end."""

    policy: BadRowPolicy
    tally: Counter[str]

    def __iter__(self) -> Iterator[Any]: ...


class Plan(Protocol):
    """What a worker works by."""

    def maker(self, states: dict[int, np.ndarray]) -> Maker:
        """Makes what the lanes give from these states on."""
        ...


class Assignment(NamedTuple):
    """What a worker is to do."""

    plan: Plan
    states: dict[int, np.ndarray]
    """Its lanes, in the order of their turns, each with its state."""
    rows_per_message: int
    messages_ahead: int


class Message(NamedTuple):
    """What a worker sends."""

    rows: list[Any]
    """Each a ``Turn``."""
    counts: dict[str, int]
    """Bad rows since the last message, by reason."""
    examples: dict[str, str]
    tally: dict[str, int]
    """What packing has counted since the last message."""
    error: str
    """Why no more rows will come, or an empty string."""


def messages(assignment: Assignment) -> Iterator[Message]:
    """Yields the rows of the assigned lanes without end, or until bad data ends them with an error."""
    maker = assignment.plan.maker(assignment.states)
    rows = iter(maker)
    while True:
        try:
            batch = list(islice(rows, assignment.rows_per_message))
        except DataError as error:
            yield Message([], *maker.policy.drain(), {}, error=str(error))
            return
        yield Message(batch, *maker.policy.drain(), dict(maker.tally), error="")
        maker.tally.clear()


def main(descriptor: int) -> None:
    """Serves the connection with this file descriptor until an error, or until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which then closes the connection
    connection = Connection(descriptor)
    sys.path[:] = connection.recv()
    try:
        assignment: Assignment = connection.recv()
    except (ImportError, AttributeError) as error:
        remedy = "define it in an importable module (not in __main__), or set training.dataloader.num_workers = 0"
        connection.send(Message([], {}, {}, {}, error=f"the encoder cannot be loaded in a worker ({error}): {remedy}"))
        return
    outbox: queue.Queue[Message | None] = queue.Queue(assignment.messages_ahead)
    sender = threading.Thread(target=_send, args=(connection, outbox), daemon=True)
    sender.start()
    for message in messages(assignment):
        outbox.put(message)
    outbox.put(None)
    sender.join()


def _send(connection: Connection, outbox: "queue.Queue[Message | None]") -> None:
    """Sends while the main thread goes on making rows; a full queue is what holds that thread back."""
    try:
        while (message := outbox.get()) is not None:
            connection.send(message)
    except OSError:
        os._exit(0)  # the trainer is gone, and the main thread may be anywhere
