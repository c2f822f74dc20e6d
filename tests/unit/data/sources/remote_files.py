"""A filesystem for tests of remote sources: in memory, and as slow and unreliable as it is told to be."""

import threading
import time
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Faulty(MemoryFileSystem):
    """Files in memory of this process, under ``faulty://``."""

    protocol = "faulty"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    cachable = False
    delay = 0.0
    """Seconds that every read takes."""
    failing = 0
    """How many of the next reads fail."""
    error: Exception = ConnectionResetError("the line was cut")
    short = False
    """Whether reads give fewer bytes than were asked for."""
    reads: list[tuple[str, str, int]] = []
    """File, thread and bytes of every read."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        kind = type(self)
        time.sleep(kind.delay)
        if kind.failing:
            kind.failing -= 1
            raise kind.error
        data = super().cat_file(path, start=start, end=end, **options)
        kind.reads.append((path, threading.current_thread().name, len(data)))
        return data[:-1] if kind.short else data

    @classmethod
    def reset(cls) -> None:
        """Forgets all files and faults."""
        cls.store, cls.pseudo_dirs, cls.reads = {}, [""], []
        cls.delay, cls.failing, cls.short = 0.0, 0, False
        cls.error = ConnectionResetError("the line was cut")


fsspec.register_implementation("faulty", Faulty, clobber=True)


def put(url: str, data: bytes) -> None:
    """Writes a file."""
    Faulty().pipe_file(url, data)
