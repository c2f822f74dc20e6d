"""Jobs, documents and runs for the tests of preparations."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flame.data.prepare.job import PrepareJob
from flame.data.prepare.job_file import read_job

ROOT = Path(__file__).resolve().parents[4]
_WORDS = """
the of and to that have with be in for on as at by from this which or but not are was were been their they he she his
farmer teacher captain neighbour doctor painter clerk ladder bridge garden letter engine window basket mirror harbour
violin lamp river mountain village market kitchen morning evening winter summer journey question answer story machine
carries paints forgets measures repairs describes borrows returns sells builds follows remembers explains discovers
small large old young quiet bright heavy simple careful strange distant familiar wooden narrow broken golden gentle
always never often slowly quickly together again perhaps almost nearly quite rather before after while because until
people children music water paper bread stone cloth silver weather kingdom history science music number language
""".split()  # noqa: SIM905  a list would take a page


def prose(seed: int, sentences: int = 12) -> str:
    """A text that passes the default filters, unlike that of any other seed."""
    drawn = random.Random(seed)
    lines = [" ".join(drawn.choices(_WORDS, k=drawn.randint(9, 18))).capitalize() + "." for _ in range(sentences)]
    return "\n".join([f"{lines[0][:-1]} with the old {drawn.choice(_WORDS)} of that.", *lines[1:]])


def write_toml(path: Path, settings: Mapping[str, Any]) -> Path:
    """Writes a job file of dotted keys; a list of tables is one value."""
    path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in settings.items()), encoding="utf-8")
    return path


def job_of(settings: Mapping[str, Any]) -> PrepareJob:
    """Reads a job of dotted keys."""
    folder = Path(str(settings["output.folder"]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    return read_job(write_toml(folder.with_suffix(".toml"), settings), [])


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a preparation: no network, one thread."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **(extra or {})}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the result, ``train`` and ``val``."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for part in ("train", "val")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


_DRIVER = """
import json, os, resource, sys
import flame.data.prepare.run
from flame.cli import main
for line in sys.stdin:
    words, log, largest = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        if largest:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        code = main(["data", "prepare", *words])
        sys.stdout.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Drivers:
    """Starts preparations in processes and sessions of their own, without the seconds of imports each."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process = subprocess.Popen(
            [sys.executable, "-c", _DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )

    def start(self, job: Path, *words: str, largest: int = 0) -> int:
        """Starts one whose files may not grow beyond ``largest`` bytes; returns its process and session id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([[str(job), *words], str(self.log), largest]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """Waits for the one that was started; returns its exit code."""
        return self._answer()

    def close(self) -> None:
        """Ends the process that starts them."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())
