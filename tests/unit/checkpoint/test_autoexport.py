from pathlib import Path
from typing import Any

import pytest

from flame.checkpoint import autoexport
from flame.checkpoint.autoexport import AutoExport
from flame.config import JobConfig


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """Stands in for the export itself; gives what it was asked for."""
    calls = []

    def export_hf(checkpoint: Path, assets: Path, out: Path, *, dtype: str, max_shard_size: str, card: Any) -> Path:
        calls.append((checkpoint.name, out.name, {"dtype": dtype, "max_shard_size": max_shard_size, **card}))
        out.mkdir(parents=True)
        return out

    monkeypatch.setattr(autoexport, "export_hf", export_hf)
    return calls


def exporter(folder: Path, saved: list[int], **export: Any) -> AutoExport:
    config = JobConfig()
    config.job.dump_folder = str(folder)
    config.training.steps = 30
    for name, value in export.items():
        setattr(config.export, name, value)
    for step in saved:
        (folder / "checkpoint" / f"step-{step}").mkdir(parents=True)
    return AutoExport(config, card=lambda: {"loss": 1.5})


def complete(made: AutoExport, *steps: int) -> None:
    for step in steps:
        made.step_completed(step, made.run.checkpoint / f"step-{step}")


def test_the_last_step_is_exported_when_training_has_ended(tmp_path: Path, exported: list) -> None:
    made = exporter(tmp_path, [10, 20, 30], dtype="bfloat16", max_shard_size="1GB")
    complete(made, 10, 20, 30)
    assert exported == []
    made.finish(30, is_over=True)
    assert exported == [("step-30", "step-30", {"dtype": "bfloat16", "max_shard_size": "1GB", "loss": 1.5})]
    assert made.last == tmp_path / "hf" / "step-30"
    assert (tmp_path / "hf" / "latest").resolve() == made.last


def test_an_interval_exports_on_the_way_and_the_last_once(tmp_path: Path, exported: list) -> None:
    made = exporter(tmp_path, [10, 15, 20, 30], interval=10)
    complete(made, 10, 15, 20, 30)
    assert [call[0] for call in exported] == ["step-10", "step-20"]
    made.finish(30, is_over=True)
    made.finish(30, is_over=True)
    assert [call[0] for call in exported] == ["step-10", "step-20", "step-30"]


def test_a_run_that_ended_early_exports_nothing(tmp_path: Path, exported: list) -> None:
    made = exporter(tmp_path, [10])
    made.finish(10, is_over=False)
    assert exported == [] and made.last is None


def test_a_run_whose_data_ended_exports_the_step_it_reached(tmp_path: Path, exported: list) -> None:
    exporter(tmp_path, [17]).finish(17, is_over=True)
    assert [call[0] for call in exported] == ["step-17"]


def test_a_last_step_that_was_not_saved_exports_nothing(tmp_path: Path, exported: list) -> None:
    exporter(tmp_path, [20]).finish(30, is_over=True)
    assert exported == []


def test_nothing_is_exported_when_it_is_off(tmp_path: Path, exported: list) -> None:
    made = exporter(tmp_path, [10, 30], enable=False, interval=10)
    complete(made, 10, 30)
    made.finish(30, is_over=True)
    assert exported == []


def test_a_finished_run_started_again_names_its_export(tmp_path: Path, exported: list) -> None:
    (tmp_path / "hf" / "step-30").mkdir(parents=True)
    made = exporter(tmp_path, [30])
    made.finish(30, is_over=True)
    assert exported == [] and made.last == tmp_path / "hf" / "step-30"
