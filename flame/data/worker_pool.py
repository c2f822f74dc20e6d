"""Worker processes as seen from the trainer: started, read from in turn, and stopped."""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from typing import Any

import numpy as np

from flame.data.lane_states import next_turn
from flame.data.worker import Assignment, Message, Plan
from flame.errors import DataError

# Not `-m`: messages are pickled by reference to flame.data.worker, which must not be __main__ at the other end.
_COMMAND = "import sys; from flame.data.worker import main; main(int(sys.argv[1]))"
_GRACE = 2.0  # seconds between asking a worker to end and ending it
_ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
}


class Worker:
    """One worker process and the connection to it."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        environment = {
            **os.environ,
            **_ONE_THREAD,
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment,
        )
        theirs.close()  # now the worker holds the only other end, and its death is the end of the connection
        self._rows: deque[Any] = deque()

    def assign(self, assignment: Assignment) -> None:
        """Tells the worker what to do."""
        try:
            self._connection.send(list(sys.path))
            self._connection.send(assignment)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death() from error

    def next_row(self, note: Callable[[Message], None]) -> Any:
        """Waits for the worker's next row.

        Args:
            note: Is told every message that arrives.

        Raises:
            DataError: If the data are bad, or the worker has died.
        """
        while not self._rows:
            try:
                message: Message = self._connection.recv()
            except (EOFError, ConnectionResetError) as error:
                raise self._death() from error
            note(message)
            if message.error:
                raise DataError(message.error)
            self._rows.extend(message.rows)
        return self._rows.popleft()

    def hang_up(self) -> None:
        """Closes the connection and asks the process to end."""
        self._connection.close()
        self.process.terminate()

    def join(self) -> None:
        """Waits for the process to end, and ends it if it takes too long."""
        try:
            self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _death(self) -> DataError:
        code = self.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        remedy = (
            "memory may have run out, lower training.dataloader.num_workers" if code == -9 else "see its output above"
        )
        return DataError(f"data worker {self.process.pid} died ({how}): {remedy}")


class WorkerPool:
    """Rows of many lanes, made by several worker processes; the same rows as without them.

    The lanes are dealt out to the workers like cards, in the order of their turns.

    Args:
        plan: What rows look like, or which examples batches have.
        states: The lanes in the order of their turns, each with its state.
        count: Number of workers; no more are started than there are lanes.
        rows_per_message: Rows that a worker sends at once.
        messages_ahead: Messages that a worker makes ahead of need.
        note: Is told every message that arrives.
    """

    def __init__(
        self,
        plan: Plan,
        states: dict[int, np.ndarray],
        *,
        count: int,
        rows_per_message: int,
        messages_ahead: int,
        note: Callable[[Message], None],
    ):
        self._lanes = list(states)
        self._turn = next_turn(list(states.values()))
        self._note = note
        self.workers = [Worker() for _ in range(min(count, len(states)))]
        try:
            for number, worker in enumerate(self.workers):
                share = {lane: states[lane] for lane in self._lanes[number :: len(self.workers)]}
                worker.assign(Assignment(plan, share, rows_per_message, messages_ahead))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Any]:
        """Yields rows without end, the lanes taking turns."""
        while True:
            row = self.workers[self._turn % len(self.workers)].next_row(self._note)
            assert row.lane == self._lanes[self._turn], "a worker's lanes are out of step"
            yield row
            self._turn = (self._turn + 1) % len(self._lanes)

    def close(self) -> None:
        """Ends the workers; safe to call again."""
        for worker in self.workers:
            worker.hang_up()
        for worker in self.workers:
            worker.join()
