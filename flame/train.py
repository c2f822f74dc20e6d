"""One training process. ``python -m flame.train`` is what torchrun starts on every device:

torchrun --nproc-per-node 8 -m flame.train --job.config_file configs/jobs/quickstart.toml
"""

import logging
import os
import sys
import threading
import time
import warnings
from typing import NoReturn

from flame import compat
from flame.cli import run
from flame.config import parse, resolve
from flame.hardware import keep_freed_memory
from flame.plugin import load_task
from flame.spec import Job, check_job, load_job
from flame.trainer import train

log = logging.getLogger(__name__)

# How torchtitan's lines begin that say nothing here, or say it wrong (an unknown device's peak, autocast).
_NOISE = (
    "[GC]",
    "Building flame",
    "Building device mesh",
    "Finished saving the checkpoint",
    "Mixed precision",
    "Peak FLOPS",
    "Saving the checkpoint",
    "Sleeping 2 seconds",
    "Successfully created meshes",
    "Trainer is initialized",
    "\x1b[34mModel flame",
    "Model flame",
    "\x1b[31mPipeline Parallel loss is not visible",
    "Pipeline Parallel loss is not visible",
)


def main(argv: list[str]) -> int:
    """Trains the job of the command line as one rank of the world the environment describes."""
    return run_job(prepare(argv, world_size=int(os.environ.get("WORLD_SIZE", "1"))))


def prepare(argv: list[str], world_size: int) -> Job:
    """Parses, resolves and loads a job and checks it.

    Raises:
        FlameError: the job cannot be trained; the message says what to change.
    """
    start_logging()
    config = parse(argv, task_options)
    resolve(config, world_size)
    job = load_job(config)
    check_job(job)
    return job


def task_options(name: str, plugin_path: str = "") -> type:
    """The class of the ``[task]`` table of a task."""
    return load_task(name, plugin_path).Options  # type: ignore[attr-defined]


def run_job(job: Job) -> int:
    """Trains and says what to do with the result."""
    if compat.DEVICE_TYPE == "cpu":
        keep_freed_memory()
    folder = train(job)
    if folder is not None:
        print(f"\nTry it:  {job.task.try_it.format(model=folder.parent / 'latest')}\n")
    return 0


def start_logging() -> None:
    """One short line per message on standard output; only warnings from every rank but the first."""
    quiet = os.environ.get("RANK", "0") != "0"
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(lambda record: not str(record.msg).startswith(_NOISE))
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler], force=True)
    for name in ("httpx", "torchao", "datasets", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # fla says at import that there is no Triton device; `flame doctor` and `flame families` say what follows from it.
    warnings.filterwarnings("ignore", message="Triton is not supported")


def _end_with_agent() -> None:
    """Ends this rank once torchrun's agent is gone: one that is killed takes nobody with it, and ranks that train on
    would write into the folder of the run that goes on."""
    agent = os.getppid()
    while os.getppid() == agent:
        time.sleep(1)
    os._exit(1)


def _leave(code: int) -> NoReturn:
    """Ends a failed rank at once. Taking its process groups down in order would race with ranks that still send to it:
    gloo's threads then abort the process, and why the rank failed is lost behind a SIGABRT."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with_agent, daemon=True).start()
    try:
        code = run(main, sys.argv[1:])
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    if code:
        _leave(code)
