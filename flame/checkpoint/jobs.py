"""Runs many small jobs in a few threads, with a progress bar in bytes."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from tqdm import tqdm

WORKERS = min(4, os.cpu_count() or 1)
MEMORY_BUDGET = 512 * 1024 * 1024  # bytes that jobs may hold at a time, where one of them alone needs less


def workers_for(job_bytes: int) -> int:
    """Returns how many jobs may run at a time if each holds ``job_bytes`` in memory."""
    return max(1, min(WORKERS, MEMORY_BUDGET // max(job_bytes, 1)))


def run_jobs(jobs: Iterable[Callable[[], int]], workers: int, total: int, title: str, progress: bool) -> None:
    """Runs jobs in threads; the first error stops the rest and is raised.

    Args:
        jobs: Each returns the bytes it handled. Taken from the iterable only shortly before they run.
        workers: Number of threads.
        total: Bytes of all jobs.
        title: Shown before the progress bar.
        progress: Whether to show the bar.
    """
    running: set[Future[int]] = set()
    bar = tqdm(total=total, desc=title, unit="B", unit_scale=True, disable=not progress)
    with bar, ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                running.add(pool.submit(job))
                if len(running) >= 4 * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    bar.update(sum(future.result() for future in done))
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                bar.update(sum(future.result() for future in done))
        finally:
            for future in running:
                future.cancel()
