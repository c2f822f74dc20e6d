"""What a preparation imports is what the extra `prepare` installs."""

import subprocess
import sys
from pathlib import Path

import pytest
from prepare_stand_ins import environment, prose, write_toml

from flame.cli import main
from flame.data.prepare import command

_HIDDEN = """
import importlib.abc, pkgutil, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nltk", "ahocorasick"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import flame.data.prepare
for module in pkgutil.walk_packages(flame.data.prepare.__path__, "flame.data.prepare."):
    if not module.name.endswith("pictures"):
        __import__(module.name)
from pathlib import Path
from flame.data.prepare.builder import PLAN
from flame.data.prepare.job_file import read_job
from flame.data.prepare.reading.plan import make_plan
from flame.data.prepare.stages import build_stages

job = read_job(Path(sys.argv[1]), [])
work = Path(job.output.folder) / ".prepare"
plan = make_plan(job.inputs, 1 << 30)
plan.save(work / PLAN)
for stage in build_stages(job, plan, work):
    for rank in range(stage.tasks):
        data = None
        for step in stage.steps:
            data = step(data, rank, stage.tasks)
        for _ in data or ():
            pass
"""


def test_no_stage_needs_packages_that_the_extra_does_not_name(tmp_path: Path) -> None:
    for number in range(4):
        body = "".join(f"<p>{line}</p>" for line in prose(number).splitlines())
        (tmp_path / f"{number}.html").write_text(f"<html><body><article>{body}</article></body></html>")
    (tmp_path / "quiz.txt").write_text(prose(9))
    settings = {
        "inputs": [{"path": f"{tmp_path}/*.html", "name": "x"}],
        "output.folder": str(tmp_path / "out"),
        "output.format": "parquet",
        "language.keep": ["en"],
        "decontaminate.sources": [f"{tmp_path}/quiz.txt"],
        "report.tokens": "none",
    }
    job = write_toml(tmp_path / "job.toml", settings)
    done = subprocess.run([sys.executable, "-c", _HIDDEN, str(job)], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "train").is_dir()


def test_a_package_that_is_absent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setattr(command, "_PACKAGES", (*command._PACKAGES, "no_such_package"))
    job = write_toml(tmp_path / "job.toml", {"inputs": [{"path": "x"}], "output.folder": str(tmp_path / "out")})
    assert main(["data", "prepare", str(job)]) == 2
    assert 'no_such_package, which is not installed: pip install "flame[prepare]"' in capfd.readouterr().err
