"""What is handed to Slurm and Ray, which are not here: their commands are stood in for."""

import json
import os
import stat
import sys
import types
from pathlib import Path
from typing import Any

import dill
import pytest
from prepare_stand_ins import contents, prose, write_toml

from flame.cli import main

_SBATCH = """#!{python}
import json, os, sys
folder = "{folder}"
number = len(os.listdir(folder)) + 1
script = open(sys.argv[-1]).read()
json.dump([sys.argv[1:-1], script], open(f"{{folder}}/{{number:03d}}.json", "w"))
print("Submitted batch job", number)
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    rows = [json.dumps({"text": prose(seed)}) for seed in range(30)]
    for number in range(3):
        (tmp_path / f"part{number}.jsonl").write_text("\n".join(rows[number::3]))
    return write_toml(
        tmp_path / "job.toml",
        {
            "inputs": [{"path": f"{tmp_path}/*.jsonl", "name": "x"}],
            "output.folder": str(tmp_path / "out"),
            "output.format": "parquet",
            "split.validation": 0.2,
            "executor.task_bytes": 1,
            "executor.slurm.partition": "cpu",
            "executor.slurm.sbatch_args": ["account=physics", "exclusive"],
            "executor.slurm.setup": "source /shared/venv/bin/activate",
        },
    )


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts an sbatch into the path that keeps what it is given, one file per job."""
    folder, programs = tmp_path / "submitted", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    sbatch = programs / "sbatch"
    sbatch.write_text(_SBATCH.format(python=sys.executable, folder=folder))
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    (programs / "scontrol").symlink_to("/bin/echo")
    (programs / "squeue").write_text(f"#!/bin/sh\ncat {tmp_path}/queue\n")
    (programs / "squeue").chmod(0o755)
    (tmp_path / "queue").touch()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_slurm_gets_a_chain_of_job_arrays_that_prepare_the_same(
    job: Path, submitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    assert main(["data", "prepare", str(job), f"--output.folder={tmp_path}/local"]) == 0
    assert main(["data", "prepare", str(job), "--executor.kind=slurm"]) == 0
    assert "submitted" in capfd.readouterr().out
    jobs = [json.loads(path.read_text()) for path in sorted(submitted.iterdir())]
    arrays = [(words, script) for words, script in jobs if "launch_pickled_pipeline" in script]
    words, script = arrays[0]
    for line in ("--partition=cpu", "--account=physics", "--exclusive", "--array=0-2", "--job-name=prepare-read"):
        assert f"#SBATCH {line}\n" in script, script
    assert "source /shared/venv/bin/activate" in script and "--qos" not in script
    assert not any("dependency" in word for word in words)
    for words, _ in arrays[1:]:
        assert any(word.startswith("--dependency=afterok:") for word in words), words
    # What a node would do: load the pickled executor, and run one task of the array.
    monkeypatch.setenv("SLURM_NODELIST", "here")
    for _, script in arrays:
        pickled = next(word for word in script.split() if word.endswith("executor.pik"))
        array = next(line for line in script.splitlines() if "--array=" in line).partition("=0-")[2]
        for task in range(int(array) + 1):
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
            dill.loads(Path(pickled).read_bytes()).run()
    assert contents(tmp_path / "out") == contents(tmp_path / "local") != {}
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert main(["data", "prepare", str(job), "--executor.kind=slurm"]) == 0
    assert "is finished" in capfd.readouterr().out


def test_what_is_queued_is_neither_submitted_again_nor_removed(
    job: Path, submitted: Path, tmp_path: Path, capfd: Any
) -> None:
    words = ["data", "prepare", str(job), "--executor.kind=slurm"]
    assert main(words) == 0
    first = len(list(submitted.iterdir()))
    queue = tmp_path / "queue"
    queue.write_text("  7\n 1007\n")
    for more in ([], ["--restart"], ["--executor.kind=local"]):
        assert main([*words, *more]) == 2
        assert "1 Slurm jobs of an earlier run" in (said := capfd.readouterr().err) and "scancel 7" in said
    assert len(list(submitted.iterdir())) == first and (tmp_path / "out/.prepare/logs/read/executor.pik").is_file()
    queue.write_text("")
    assert main([*words, "--restart"]) == 0
    assert len(list(submitted.iterdir())) == 2 * first
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
    assert main(words) == 2 and "squeue does not say" in capfd.readouterr().err
    (tmp_path / "bin/squeue").unlink()
    assert main(words) == 2 and "squeue: run this on a login node" in capfd.readouterr().err


def test_slurm_without_its_commands_is_refused(job: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("PATH", str(job.parent))
    assert main(["data", "prepare", str(job), "--executor.kind=slurm"]) == 2
    assert "needs the command sbatch" in capfd.readouterr().err


def test_ray_runs_the_same_stages(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    started: list[dict[str, Any]] = []
    ray: Any = types.ModuleType("ray")
    ray.is_initialized = lambda: bool(started)
    ray.init = lambda **options: started.append(options)
    monkeypatch.setitem(sys.modules, "ray", ray)

    def run(self: Any) -> None:
        for rank in range(self.world_size):
            for incomplete in self.get_incomplete_ranks([rank]):
                self._run_for_rank(incomplete, local_rank=1)

    monkeypatch.setattr("datatrove.executor.ray.RayPipelineExecutor.run", run)
    assert main(["data", "prepare", str(job), f"--output.folder={tmp_path}/local"]) == 0
    assert main(["data", "prepare", str(job), "--executor.kind=ray", "--executor.ray.address=ray://head"]) == 0
    assert started == [{"address": "ray://head"}]
    assert contents(tmp_path / "out") == contents(tmp_path / "local") != {}
