"""The state of a preparation on disk: which job it belongs to, who works on it, and whether it is finished."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from flame.data.prepare.documents import write_json
from flame.data.prepare.job import PrepareJob
from flame.errors import ConfigError

STATE = ".prepare"
"""Folder of the state, inside the output folder."""
RESULTS = ("train", "val")
"""Folders that a finished preparation puts into the output folder."""
FINISHED = "prepared.json"
"""File in the output folder that says that the preparation is finished; written last."""
REPORTS = ("report.json", "report.md", "report.png")
_JOB, _DRIVER, _WORKERS = "job.json", "driver.lock", "workers.lock"
_NOT_COMPARED = ("executor", "report")
_PATIENCE = 600.0  # seconds that workers of a killed run are waited for


def settings(job: PrepareJob) -> dict[str, Any]:
    """Flattens what decides the result: dotted key -> value, without executor and report."""
    flat: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else key)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for position, inner in enumerate(value):
                walk(inner, f"{name}.{position}")
        else:
            flat[name] = value

    walk({key: value for key, value in asdict(job).items() if key not in _NOT_COMPARED}, "")
    del flat["output.folder"]  # a folder may be moved
    return flat


def claim(job: PrepareJob, output: Path, tokenizer: str = "") -> None:
    """Makes the output folder this job's, or makes sure that it is.

    Args:
        job: The job.
        output: Its output folder.
        tokenizer: Fingerprint of its tokenizer, which may change while its path stays the same.

    Raises:
        ConfigError: The folder holds the state or result of other settings, or files of other origin.
    """
    path = output / STATE / _JOB
    wanted = json.loads(json.dumps(settings(job) | {"tokenizer fingerprint": tokenizer}))
    if not path.is_file():
        strange = [name for name in (*RESULTS, FINISHED) if (output / name).exists()]
        if strange:
            raise ConfigError(f"output.folder = '{output}' has a '{strange[0]}' that is none of ours: name another one")
        write_json(path, wanted)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for key in [*found, *wanted]:
        if found.get(key) != wanted.get(key):
            was, now = (json.dumps(values.get(key, "unset")) for values in (found, wanted))
            raise ConfigError(
                f"output.folder = '{output}' holds a preparation with {key} = {was}, not {now}: "
                "name another folder, or begin anew with --restart"
            )


def forget(output: Path) -> None:
    """Removes the state and the result of a preparation, and nothing else.

    Raises:
        ConfigError: There are files, but no preparation made them.
    """
    if not (output / STATE / _JOB).is_file():
        if any((output / name).exists() for name in (*RESULTS, FINISHED)):
            raise ConfigError(f"output.folder = '{output}' holds no preparation to begin anew: name another folder")
        return
    for name in (FINISHED, *REPORTS):
        (output / name).unlink(missing_ok=True)
    for name in RESULTS:
        shutil.rmtree(output / name, ignore_errors=True)
    for entry in (output / STATE).iterdir():  # the locks stay: one of them is ours
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in (_JOB, _DRIVER, _WORKERS):
            entry.unlink()
    (output / STATE / _JOB).unlink()


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Keeps other preparations out of the folder, and waits for workers that a killed one left behind.

    Raises:
        ConfigError: Another preparation is at work there.
    """
    state = output / STATE
    state.mkdir(parents=True, exist_ok=True)
    with open(state / _DRIVER, "a") as driver:
        try:
            fcntl.flock(driver, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another preparation is at work in '{output}': wait for it, or end it") from None
        _wait_for_workers(state / _WORKERS)
        yield


def join_workers(work: Path) -> IO[str]:
    """Says that this process works for the preparation, until the file it returns is closed or the process ends."""
    file = open(work / _WORKERS, "a")  # noqa: SIM115  it stays open as long as the process lives
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _wait_for_workers(path: Path) -> None:
    with open(path, "a") as workers:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1)
    raise ConfigError(f"workers of an earlier run still hold '{path}': end them, and run again")


def absolute(folder: str) -> Path:
    """The output folder as an absolute path."""
    return Path(os.path.abspath(os.path.expanduser(folder)))
