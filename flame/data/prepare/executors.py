"""Running stages: processes of this machine or Ray, both of them datatrove's."""

import concurrent.futures as futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from tqdm import tqdm

from flame.data.prepare import progress
from flame.data.prepare.builder import Stage
from flame.data.prepare.documents import write_json
from flame.data.prepare.job import Executor
from flame.data.prepare.state import join_workers
from flame.errors import ConfigError, DataError, FlameError

_PRELOADED = (__name__, "flame.data.prepare.reading.reader", "flame.data.prepare.cleaning.filters")
"""What the processes of the pool are forked with, imported once."""
_LOOK = 0.25  # seconds between two looks at the progress


def run_locally(stages: list[Stage], work: Path, options: Executor, check: Callable[[Stage], None]) -> None:
    """Runs stages one after the other in a pool of processes; tasks that are done already are left out.

    Args:
        stages: The stages.
        work: Folder of the state.
        options: How many processes.
        check: Called after every stage; what it raises ends the run.

    Raises:
        FlameError: What a task raised, or a worker was killed.
    """
    waiting = [stage for stage in stages if _incomplete(stage, work)]
    if not waiting:
        return
    widest = max(len(_incomplete(stage, work)) for stage in waiting)
    slots = multiprocessing.get_context("spawn").RawArray("d", max(stage.tasks for stage in waiting))
    with _pool(min(options.workers or _cores(), widest), work, slots) as pool:
        for stage in waiting:
            begin = time.monotonic()
            _run_stage(stage, work, pool, slots)
            write_json(work / "notes" / "seconds" / f"{stage.name}.json", time.monotonic() - begin)
            check(stage)


def run_on_ray(stages: list[Stage], work: Path, options: Executor, check: Callable[[Stage], None]) -> None:
    """Runs stages one after the other on a Ray cluster; see ``run_locally``.

    Raises:
        ConfigError: Ray is not installed.
        DataError: A task failed every time.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]  no extra of ours: a cluster brings its own
    except ImportError as error:
        raise ConfigError('executor.kind = "ray" needs the package ray: pip install ray') from error
    if not ray.is_initialized():
        ray.init(address=options.ray.address)
    for stage in stages:
        executor = RayPipelineExecutor(
            pipeline=stage.steps,  # pyright: ignore[reportArgumentType]
            tasks=stage.tasks,
            workers=options.workers or -1,
            cpus_per_task=options.ray.cpus_per_task,
            mem_per_cpu_gb=options.ray.mem_per_cpu_gb,
            logging_dir=str(logs_of(stage, work)),
        )
        executor.run()
        if missing := executor.get_incomplete_ranks():
            raise DataError(f"{stage.title}: {len(missing)} of {stage.tasks} tasks failed, see {logs_of(stage, work)}")
        check(stage)


def _run_stage(stage: Stage, work: Path, pool: futures.ProcessPoolExecutor, slots: Any) -> None:
    ranks = _incomplete(stage, work)
    for rank in range(stage.tasks):
        slots[rank] = float(rank not in ranks)
    # The pool runs datatrove's executor for one task at a time. Its own pool would wait for ever for a killed worker.
    executor = LocalPipelineExecutor(
        pipeline=stage.steps,  # pyright: ignore[reportArgumentType]
        tasks=stage.tasks,
        logging_dir=str(logs_of(stage, work)),
    )
    tasks = {pool.submit(_run_task, executor, rank) for rank in ranks}
    layout = "{desc:<24}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=float(stage.tasks), desc=stage.title, bar_format=layout, file=sys.stderr) as bar:
        while tasks:
            done, tasks = futures.wait(tasks, _LOOK, futures.FIRST_EXCEPTION)
            for task in done:
                _finish(task, stage, work)
            bar.update(progress.total(slots, stage.tasks) - bar.n)


def _run_task(executor: LocalPipelineExecutor, rank: int) -> None:
    executor._run_for_rank(rank, local_rank=1)  # a rank other than 0 logs into its file alone
    progress.report(rank, 1.0)


def _finish(task: futures.Future[None], stage: Stage, work: Path) -> None:
    """Turns what ended a task into one line."""
    try:
        task.result()
    except FlameError:
        raise
    except futures.process.BrokenProcessPool as error:
        raise DataError(
            f"{stage.title}: a worker process was killed, for want of memory perhaps: run the same command again to go "
            "on, with fewer executor.workers or a smaller read.max_document_bytes if it happens again"
        ) from error
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        raise DataError(
            f"{stage.title}: {error.strerror or error}{where}: make room or mend it, and run the same command again"
        ) from error
    except Exception as error:
        error.add_note(f"in stage '{stage.title}'; its tasks write to {logs_of(stage, work)}") if hasattr(
            error, "add_note"
        ) else None
        raise


@contextmanager
def _pool(workers: int, work: Path, slots: Any) -> Iterator[futures.ProcessPoolExecutor]:
    """A pool whose processes end at once when the block does not end well, or when this process is killed."""
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    context.set_forkserver_preload(list(_PRELOADED))
    pool = futures.ProcessPoolExecutor(workers, context, _begin_worker, (work, slots))
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()
        pool.shutdown(cancel_futures=True)
        raise


def _begin_worker(work: Path, slots: Any) -> None:
    """Prepares a worker process: what it prints goes to a file, and it does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    (work / "logs").mkdir(parents=True, exist_ok=True)
    sys.stderr = open(work / "logs" / "workers.log", "a", buffering=1)  # noqa: SIM115
    global _membership
    _membership = join_workers(work)
    progress.share(slots)
    threading.Thread(target=_end_with_parent, daemon=True).start()


_membership: Any = None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _incomplete(stage: Stage, work: Path) -> list[int]:
    folder = logs_of(stage, work) / "completions"
    done = set(os.listdir(folder)) if folder.is_dir() else set()
    return [rank for rank in range(stage.tasks) if f"{rank:05d}" not in done]


def logs_of(stage: Stage, work: Path) -> Path:
    """Where the tasks of a stage log, and say that they are done."""
    return work / "logs" / stage.name


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
