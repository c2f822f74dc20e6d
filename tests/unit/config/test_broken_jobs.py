"""Every way to break a shipped job ends in one line that says what is wrong."""

import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flame.config import ALIASES, parse, resolve
from flame.config.aliases import REFUSED
from flame.config.bounds import BOUNDS
from flame.errors import FlameError
from flame.plugin import load_task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[3]
JOBS = sorted([*(ROOT / "configs" / "jobs").glob("*.toml"), *(ROOT / "flame" / "models").glob("*.toml")])

WRONG = {str: 5, int: "many", bool: "perhaps", float: "fast", list: 5}
MISSING = {
    "model": {"config": "missing.json", "tokenizer_path": "./missing", "plugin_path": "missing"},
    "checkpoint": {"initial_load_path": "/missing/step-5", "load_step": -2},
    "data": {"sources": [{"path": "missing.parquet"}]},
}
IMPOSSIBLE = {
    "training": {"global_batch_size": 0, "gradient_accumulation_steps": -1, "context_len": 10**9},
    "parallelism": {"data_parallel_shard_degree": 3, "tensor_parallel_degree": 2, "context_parallel_degree": 2},
    "optimizer": {"name": "Adamant", "early_step_in_backward": True},
}

Variant = tuple[str, dict[str, Any], str]  # what is broken, the job, what the message must hold


def leaves(table: dict[str, Any], section: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields the path and value of every key of a job, those of sources included."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, (*section, name))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, entry in enumerate(value):
                yield from leaves(entry, (*section, name, index))
        else:
            yield (*section, name), value


def changed(job: dict[str, Any], path: tuple[Any, ...], name: Any, value: Any) -> dict[str, Any]:
    """Copies a job with the key at ``path`` replaced by ``name`` = ``value``."""
    copied = copy.deepcopy(job)
    table = copied
    for part in path[:-1]:
        table = table[part]
    table.pop(path[-1], None)
    table[name] = value
    return copied


def with_key(job: dict[str, Any], section: str, name: str, value: Any) -> dict[str, Any]:
    copied = copy.deepcopy(job)
    table = copied
    for part in section.split("."):
        table = table.setdefault(part, {})
    table[name] = value
    return copied


def misspelt(job: dict[str, Any]) -> Iterator[Variant]:
    for path, value in leaves(job):
        *section, name = path
        dotted = ".".join(map(str, path))
        meant: str = "" if dotted in REFUSED else ALIASES.get(dotted) or name
        for wrong in (name + name[-1], name[0] + name, name[:-2] + name[-1] + name[-2]):
            if wrong != name and len(name) > 2:  # nothing is close to two letters
                yield f"{dotted} as {wrong}", changed(job, path, wrong, value), meant
    for section, table in job.items():
        copied = {name: content for name, content in job.items() if name != section}
        yield f"[{section}] as [{section}s]", {**copied, f"{section}s": table}, section


def mistyped(job: dict[str, Any]) -> Iterator[Variant]:
    for path, value in leaves(job):
        dotted = ".".join(map(str, path))
        yield f"type of {dotted}", changed(job, path, path[-1], WRONG[type(value)]), dotted
        yield f"table in the place of {dotted}", changed(job, path, path[-1], {"x": 1}), dotted


def impossible(job: dict[str, Any]) -> Iterator[Variant]:
    for table in (MISSING, IMPOSSIBLE):
        for section, values in table.items():
            for name, value in values.items():
                yield f"{section}.{name} = {value}", with_key(job, section, name, value), ""
    yield "validation without sources", {**job, "validation": {"enable": True}}, "validation.sources"
    for key, bound in BOUNDS.items():
        section, _, name = key.rpartition(".")
        old_name = next((alias for alias, canonical in ALIASES.items() if canonical == key), None)
        taken = old_name and old_name.split(".")[1] in job.get(old_name.split(".")[0], {})
        if "*" not in section and not taken:
            value = -3 if isinstance(bound.low, int) else -3.0
            yield f"{key} = {value}", with_key(job, section, name, value), key


def dump(table: dict[str, Any]) -> str:
    """Writes a job as TOML with nothing but inline tables."""

    def literal(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{name} = {literal(inner)}" for name, inner in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(literal, value)) + "]"
        return json.dumps(value)

    return "\n".join(f"{name} = {literal(value)}" for name, value in table.items())


def variants() -> Iterator[Any]:
    """What is broken alike in several jobs of a task is tried in the first of them."""
    tried: set[tuple[str, str]] = set()
    for path in JOBS:
        job = tomllib.loads(path.read_text())
        task = job.get("task", {}).get("name", "")
        for kind in (misspelt, mistyped, impossible):
            for what, broken, said in kind(job):
                if (task, what) not in tried:
                    tried.add((task, what))
                    yield pytest.param(broken, said, id=f"{path.stem}: {what}")


VARIANTS = list(variants())


def check(arguments: list[str]) -> None:
    config = parse(arguments, task_options=lambda name, plugin_path: load_task(name, plugin_path).Options)
    resolve(config, world_size=1)


@pytest.fixture
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_job_is_sound_before_it_is_broken(path, in_repository, tmp_path):
    (tmp_path / "job.toml").write_text(dump(tomllib.loads(path.read_text())))
    check(["--job.config_file", str(tmp_path / "job.toml")])


def test_there_are_enough_broken_jobs():
    assert len(VARIANTS) >= 200


@pytest.mark.parametrize(("job", "said"), VARIANTS)
def test_a_broken_job_is_one_line(job, said, tmp_path, in_repository):
    (tmp_path / "job.toml").write_text(dump(job))
    with pytest.raises(FlameError) as error:
        check(["--job.config_file", str(tmp_path / "job.toml")])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("flame.launch") is None, reason="needs flame.launch")
@pytest.mark.parametrize("argument", ["--training.stepz=5", "--training.steps=many"])
def test_the_command_line_prints_one_line_and_exits_with_2(argument, tmp_path):
    command = [
        sys.executable,
        "-m",
        "flame.cli",
        "train",
        "--job.config_file",
        "configs/jobs/quickstart.toml",
        argument,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("flame: error: ")
    assert "training.steps" in done.stderr
    assert "Traceback" not in done.stderr
