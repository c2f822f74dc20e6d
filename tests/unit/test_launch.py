from types import SimpleNamespace

import pytest
import torch

from flame import launch, train
from flame.errors import ConfigError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What would have been started, on a machine without accelerators."""
    calls: list[tuple] = []
    job = SimpleNamespace(config=SimpleNamespace(job=SimpleNamespace(dump_folder="run")))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    monkeypatch.setattr(train, "prepare", lambda argv, world_size: calls.append(("prepare", world_size)) or job)
    monkeypatch.setattr(train, "run_job", lambda job: calls.append(("here",)) or 0)
    monkeypatch.setattr(launch, "check_sources", lambda job: calls.append(("sources",)))
    monkeypatch.setattr(launch, "_run_agent", lambda argv, *rest: calls.append(("agent", *rest)) or 7)
    for name in ("NNODE", "NGPU", "MASTER_PORT", "MASTER_ADDR", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        # Set and deleted, so that whatever main sets is taken back afterwards.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return calls


def test_one_process_runs_here(started: list[tuple]) -> None:
    assert launch.main([]) == 0
    assert started == [("prepare", 1), ("sources",), ("here",)]


def test_the_default_is_every_accelerator(started: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    assert launch.main([]) == 7
    assert started == [("prepare", 8), ("sources",), ("agent", 1, 8, "run/logs")]


def test_nodes_times_processes_is_the_world(started: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NNODE", "2"), ("NGPU", "3"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert launch.main([]) == 7
    assert started == [("prepare", 6), ("sources",), ("agent", 2, 3, "run/logs")]


def test_an_empty_variable_is_one_that_is_not_set(started: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGPU", "")
    launch.main([])
    assert started[0] == ("prepare", 1)


@pytest.mark.parametrize(
    "name, value", [("NGPU", "0"), ("NGPU", "two"), ("NGPU", "-1"), ("NGPU", "1.5"), ("NNODE", "0")]
)
def test_a_number_that_is_none_is_one_error(
    started: list[tuple], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} is '{value}'"):
        launch.main([])
    assert started == []


def test_more_processes_than_accelerators_are_refused(started: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setenv("NGPU", "3")
    with pytest.raises(ConfigError, match="NGPU is 3, but this machine has 2"):
        launch.main([])


def test_several_nodes_need_a_port_that_all_know(started: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNODE", "2")
    with pytest.raises(ConfigError, match="MASTER_PORT"):
        launch.main([])


def test_help_starts_nothing(started: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--help"]) == 0
    assert started == []
    shown = capsys.readouterr().out
    assert "training.seq_len" in shown and "linear_cross_entropy" in shown
