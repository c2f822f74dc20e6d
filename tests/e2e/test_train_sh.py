"""``train.sh``: from any folder, for any number of processes, with the job's exit code and no process left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.test_resume import alive, children
from tests.runs import FAMILIES, ROOT, Materials, environment, read_records, write_job


def train_sh(*arguments: str, folder: Path, processes: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(ROOT / "train.sh"), *arguments],
        cwd=folder,
        env={**environment(processes), "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_it_trains_from_another_folder_with_2_processes(materials: Materials, tmp_path: Path) -> None:
    job = write_job(materials, tmp_path / "run", {"job.dump_folder": "run", "export.enable": True})
    process = train_sh("--job.config_file", job.name, folder=tmp_path, processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert [record["step"] for record in read_records(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert (tmp_path / "run" / "hf" / "latest" / "config.json").is_file()
    assert output.count("step 5/5  loss") == 1, "only the first rank is shown"
    assert "Try it:" in output


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_mistake_is_one_line_before_anything_starts(materials: Materials, tmp_path: Path, processes: int) -> None:
    job = write_job(materials, tmp_path / "run", {"training.stepz": 3})
    process = train_sh("--job.config_file", str(job), folder=tmp_path, processes=processes)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    (line,) = output.splitlines()
    assert line.startswith("flame: error: ") and "training.steps" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_exit_code_of_a_job_that_fails_on_every_rank_is_passed_on(materials: Materials, tmp_path: Path) -> None:
    changes = {
        "model.plugin_path": str(FAMILIES),
        "task.name": "faulty",
        "task.passes": [1, 2, 3, 4],
        "guard.skip_nan_inf": False,
    }
    job = write_job(materials, tmp_path / "run", changes)
    process = train_sh("--job.config_file", str(job), folder=tmp_path, processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 2, output
    assert "step 1: loss inf" in output
    assert "flame: error: rank" in output


BREAKING = """
from dataclasses import dataclass

import torch.distributed as dist

from flame.errors import DataError
from flame.tasks.causal_lm import CausalLM, CausalLMOptions


@dataclass
class BreakingOptions(CausalLMOptions):
    name: str = "breaking"
    error: str = ""


class Breaking(CausalLM):
    Options = BreakingOptions

    def loss_sum(self, model, inputs, labels):
        if model.training and dist.is_initialized() and dist.get_rank() == 1:
            raise {"DataError": DataError, "RuntimeError": RuntimeError}[self.options.error]("the cat sat on row 7")
        return super().loss_sum(model, inputs, labels)


TASK = Breaking
"""


@pytest.mark.parametrize(
    "error, code, words",
    [pytest.param("DataError", 2, "", marks=pytest.mark.slow), ("RuntimeError", 1, "RuntimeError: ")],
)
def test_why_a_rank_that_is_not_shown_failed_is_said(
    materials: Materials, tmp_path: Path, error: str, code: int, words: str
) -> None:
    package = tmp_path / "families" / "breaking"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("configuration_breaking", ""), ("task_breaking", BREAKING)):
        (package / f"{name}.py").write_text(text)
    changes = {"model.plugin_path": str(package.parent), "task.name": "breaking", "task.error": error}
    job = write_job(materials, tmp_path / "run", changes)
    process = train_sh("--job.config_file", str(job), folder=tmp_path, processes=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    last = output.splitlines()[-1]
    assert last.startswith(f"flame: error: rank 1 ended with exit code {code}: {words}the cat sat on row 7; see "), (
        output
    )
    assert Path(last.rpartition("; see ")[2]).is_dir()


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sigterm_ends_every_process(materials: Materials, tmp_path: Path, processes: int) -> None:
    changes = {"training.steps": 100_000, "training.dataloader.num_workers": 1, "checkpoint.interval": 100_000}
    job = write_job(materials, tmp_path / "run", changes)
    process = train_sh("--job.config_file", str(job), folder=tmp_path, processes=processes)
    deadline = time.monotonic() + 120
    while not read_records(tmp_path / "run") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[0]
    below = children(process.pid)
    assert len(below) >= processes
    os.kill(process.pid, signal.SIGTERM)
    try:
        assert process.wait(timeout=60) in (-signal.SIGTERM, 128 + signal.SIGTERM)
        deadline = time.monotonic() + 15
        while any(map(alive, below)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in below if alive(pid)]
    finally:
        for pid in filter(alive, {process.pid, *below}):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
