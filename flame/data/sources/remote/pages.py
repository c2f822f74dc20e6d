"""Pages: parts of remote files that are read at once, ahead of need, and kept while there is room."""

import logging
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from flame.errors import ConfigError

_T = TypeVar("_T")

_THREADS = 24
_LONGEST_QUEUE = 1 << 14
_DEFAULT_MIB = 256
_PASSED_OVER = 16  # times as many pages as are read ahead: more than the lanes of a process are apart
_VARIABLE = "FLAME_READ_AHEAD_MB"

logger = logging.getLogger(__name__)


class Pages(Generic[_T]):
    """The pages of one source in this process.

    Pages take at most 256 MiB (``FLAME_READ_AHEAD_MB``), half of it for those that were read ahead and not used yet;
    more only if a single page is larger. The page used longest ago goes first; one that was read ahead goes once so
    many others were used in its stead that it will hardly be used itself.

    Args:
        name: What messages call the source.
        load: Reads a page; called by several threads at once.
        size: Bytes that a page takes in memory.
    """

    def __init__(self, name: str, load: Callable[[int], _T], size: Callable[[int], int]):
        self._name = name
        self._load = load
        self._size = size
        self._limit = read_ahead_bytes()
        self._lock = threading.Lock()
        self._pages: OrderedDict[int, Future[_T]] = OrderedDict()
        # Read ahead, and not used yet: what `_uses` was when they were, in this order.
        self._ahead: dict[int, int] = {}
        self._uses = 0  # pages that were used for the first time since they were read
        self._waiting: OrderedDict[int, None] = OrderedDict()  # to be read ahead when there is room
        self._bytes = self._ahead_bytes = 0
        self._dropped: OrderedDict[int, None] = OrderedDict()
        self._has_warned = False

    def get(self, page: int) -> _T:
        """Returns a page, reading it now if nobody asked for it before.

        Raises:
            DataError: It cannot be read.
        """
        with self._lock:
            future = self._pages.get(page)
            self._waiting.pop(page, None)
            self._uses += page in self._ahead or future is None
            self._use(page)
            # One that still waits for a thread is read here: those that wait in front of it are not needed yet.
            is_mine = future is None or future.cancel()
            if is_mine:
                if future is None:
                    self._note_miss(page)
                    self._bytes += self._size(page)
                future = self._pages[page] = Future()
                future.set_running_or_notify_cancel()
            assert future is not None
            self._pages.move_to_end(page)
            self._read_ahead()
            self._make_room()
        if is_mine:
            _run(future, self._load, page)
        try:
            return future.result()
        except BaseException:
            self._forget(page)
            raise

    def prefetch(self, pages: Iterable[int]) -> None:
        """Has pages read by other threads, in this order, as soon as there is room."""
        with self._lock:
            self._waiting.update((page, None) for page in pages if page not in self._pages)
            while len(self._waiting) > _LONGEST_QUEUE:
                self._waiting.popitem(last=False)  # asked for long ago; if it is used at all, it is read then
            self._read_ahead()
            self._make_room()

    def _read_ahead(self) -> None:
        while self._waiting:
            page = next(iter(self._waiting))
            size = self._size(page)
            while self._ahead and self._ahead_bytes + size > self._limit // 2:
                if not self._drop_unused():
                    return
            del self._waiting[page]
            self._note_miss(page)
            self._pages[page] = future = Future()
            self._ahead[page] = self._uses
            self._bytes += size
            self._ahead_bytes += size
            _POOL.submit(future, self._load, page)

    def _use(self, page: int) -> None:
        if self._ahead.pop(page, None) is not None:
            self._ahead_bytes -= self._size(page)

    def _drop_unused(self) -> bool:
        """Drops the page that was read ahead first, if it has been passed over for long enough."""
        page, since = next(iter(self._ahead.items()))
        future = self._pages[page]
        if self._uses - since <= _PASSED_OVER * len(self._ahead) or not (future.done() or future.cancel()):
            return False
        self._use(page)
        del self._pages[page]
        self._bytes -= self._size(page)
        self._dropped[page] = None
        return True

    def _forget(self, page: int) -> None:
        with self._lock:
            if self._pages.pop(page, None) is not None:
                self._use(page)
                self._bytes -= self._size(page)

    def _make_room(self) -> None:
        if self._bytes <= self._limit:
            return
        *candidates, _ = self._pages  # the last one is in use
        for page in candidates:
            if self._bytes <= self._limit:
                return
            if page not in self._ahead and self._pages[page].done():
                del self._pages[page]
                self._bytes -= self._size(page)
                self._dropped[page] = None
        while len(self._dropped) > 2 * len(self._pages) + 16:
            self._dropped.popitem(last=False)

    def _note_miss(self, page: int) -> None:
        if page in self._dropped and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: parts of it are read again because they do not all fit %d MiB; set %s to more",
                self._name,
                self._limit >> 20,
                _VARIABLE,
            )


def read_ahead_bytes() -> int:
    """Bytes of memory for the pages of a source in a process.

    Raises:
        ConfigError: ``FLAME_READ_AHEAD_MB`` is not a positive number.
    """
    value = os.environ.get(_VARIABLE, str(_DEFAULT_MIB))
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"{_VARIABLE} = '{value}' must be a whole number of MiB, at least 1")
    return int(value) << 20


class _Pool:
    """Daemon threads that read pages for all sources of the process; unlike those of an executor, none is waited for
    when the process ends."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[int], Any], int]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._process = 0

    def submit(self, future: "Future[Any]", load: Callable[[int], Any], page: int) -> None:
        """Has ``load(page)`` called."""
        with self._lock:
            if self._process != os.getpid():
                self._process = os.getpid()
                for number in range(_THREADS):
                    threading.Thread(target=self._serve, name=f"read-ahead-{number}", daemon=True).start()
        self._jobs.put((future, load, page))

    def _serve(self) -> None:
        while True:
            future, load, page = self._jobs.get()
            if future.set_running_or_notify_cancel():
                _run(future, load, page)
            del future, load  # a source must not live on in an idle thread


def _run(future: "Future[Any]", load: Callable[[int], Any], page: int) -> None:
    try:
        future.set_result(load(page))
    except BaseException as error:  # it is raised again where the page is used
        future.set_exception(error)


_POOL = _Pool()
