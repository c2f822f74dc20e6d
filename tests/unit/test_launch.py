import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from flame import launch, train
from flame.errors import ConfigError
from flame.launch import Meeting


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What would have been started, on a machine without accelerators."""
    calls: list[tuple] = []
    comm = SimpleNamespace(init_timeout_seconds=300)
    job = SimpleNamespace(config=SimpleNamespace(job=SimpleNamespace(dump_folder="run"), comm=comm))
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
    assert started == [("prepare", 8), ("sources",), ("agent", Meeting(1, "127.0.0.1", 0, 300), 8, Path("run/logs"))]


def test_nodes_times_processes_is_the_world(started: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NNODE", "2"), ("NGPU", "3"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert launch.main([]) == 7
    assert started == [("prepare", 6), ("sources",), ("agent", Meeting(2, "node0", 29500, 300), 3, Path("run/logs"))]


def test_an_empty_variable_is_one_that_is_not_set(started: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGPU", "")
    launch.main([])
    assert started[0] == ("prepare", 1)


@pytest.mark.parametrize(
    "name, value",
    [
        *(("NGPU", "0"), ("NGPU", "two"), ("NGPU", "-1"), ("NGPU", "1.5"), ("NNODE", "0")),
        *(("MASTER_PORT", "65536"), ("MASTER_PORT", "ssh")),
    ],
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


@pytest.mark.parametrize(
    "missing, given", [("MASTER_PORT", ("MASTER_ADDR", "node0")), ("MASTER_ADDR", ("MASTER_PORT", "29500"))]
)
def test_several_nodes_need_a_meeting_point_that_all_know(
    started: list[tuple], monkeypatch: pytest.MonkeyPatch, missing: str, given: tuple[str, str]
) -> None:
    monkeypatch.setenv("NNODE", "2")
    monkeypatch.setenv(*given)
    with pytest.raises(ConfigError, match=missing):
        launch.main([])
    assert started == []


def test_one_node_meets_itself_whatever_the_environment_says(
    started: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGPU", "2")
    monkeypatch.setenv("MASTER_ADDR", "node7")
    launch.main([])
    assert started[-1] == ("agent", Meeting(1, "127.0.0.1", 0, 300), 2, Path("run/logs"))


def test_help_starts_nothing(started: list[tuple], capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--help"]) == 0
    assert started == []
    shown = capsys.readouterr().out
    assert "training.seq_len" in shown and "linear_cross_entropy" in shown


def resolves_to(address: str) -> Callable[..., list[tuple]]:
    return lambda *_, **__: [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, 0))]


def test_this_machine_is_the_first_node_by_its_own_address() -> None:
    route = launch._find_route("127.0.0.1")
    assert route.first and route.address == "127.0.0.1"
    assert route.interface == ("lo" if sys.platform == "linux" else None)


def test_another_machine_is_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("192.0.2.77"))
    monkeypatch.setattr(launch, "_source", {"192.0.2.77": "192.0.2.8"}.get)
    assert launch._find_route("node0") == (False, "192.0.2.8", None)


def test_a_name_that_is_the_loopback_address_to_its_bearer_is_not_what_others_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("127.0.1.1"))
    monkeypatch.setattr(launch, "_source", {"127.0.1.1": "127.0.0.1", launch._FAR_AWAY: "10.0.0.5"}.get)
    assert launch._find_route("node0")[:2] == (True, "10.0.0.5")


def test_an_unknown_name_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match="MASTER_ADDR is 'nod0'"):
        launch._find_route("nod0")


def test_an_address_without_a_route_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_source", lambda target: None)
    with pytest.raises(ConfigError, match="no network of this machine leads there"):
        launch._find_route("192.0.2.77")


def test_a_node_waits_for_a_first_one_that_comes_late() -> None:
    port = int(launch._free_port())
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        late = threading.Timer(0.5, server.listen)
        late.start()
        launch._wait_for_first_node(Meeting(2, "127.0.0.1", port, 30))
        late.join()


def test_a_node_does_not_wait_for_ever() -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match="2 nodes did not meet at 127.0.0.1:.* within 1 s"):
        launch._wait_for_first_node(Meeting(2, "127.0.0.1", int(launch._free_port()), 1))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("first", [True, False])
def test_torchrun_is_told_who_is_first(monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # set and deleted, as above
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(launch, "_find_route", lambda master: launch.Route(first, "10.0.0.5", "ib0"))
    monkeypatch.setattr(launch, "_wait_for_first_node", lambda meeting: None)
    options = launch._rendezvous(Meeting(2, "node0", 29500, 300))
    assert options["rdzv-endpoint"] == ("127.0.0.1:29500" if first else "node0:29500")
    assert ("is_host=false" in str(options["rdzv-conf"])) is not first
    assert "join_timeout=300" in str(options["rdzv-conf"])
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


def test_the_users_interface_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth9")
    monkeypatch.setattr(launch, "_find_route", lambda master: launch.Route(True, "10.0.0.5", "ib0"))
    launch._rendezvous(Meeting(2, "node0", 29500, 300))
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth9"


def write_stderr(logs: Path, local_rank: int, text: str, age: float = 0) -> None:
    path = logs / "none_x" / "attempt_0" / str(local_rank) / "stderr.log"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    written = time.time() - age
    os.utime(path, (written, written))


TRACEBACK = """[rank1]: Traceback (most recent call last):
[rank1]:   File "a.py", line 1, in <module>
[rank1]:     sit()
[rank1]: RuntimeError: the cat
[rank1]: sat
"""


@pytest.mark.parametrize(
    "text, words",
    [
        ("flame: error: first\nflame: error: row 7 is bad\nfarewell\n", ": row 7 is bad"),
        ("a warning\n" + TRACEBACK, ": RuntimeError: the cat"),
        ("a warning\n", ""),
        ("", ""),
    ],
)
def test_the_last_words_of_a_rank_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.delenv("LOG_RANK", raising=False)
    write_stderr(tmp_path, 1, text)
    shown = launch._how_it_ended(5, ProcessFailure(1, 10, 1, ""), tmp_path)
    assert shown == f"rank 5 ended with exit code 1{words}; see {tmp_path}"
    monkeypatch.setenv("LOG_RANK", "0,1")
    assert launch._how_it_ended(5, ProcessFailure(1, 10, 1, ""), tmp_path) == (
        f"rank 5 ended with exit code 1; see {tmp_path}"
    ), "what is shown anyway is not said twice"


def test_a_killed_rank_is_named_with_its_signal(tmp_path: Path) -> None:
    assert "rank 2 was ended by SIGKILL" in launch._how_it_ended(2, ProcessFailure(2, 10, -9, ""), tmp_path)


@pytest.mark.parametrize(
    "code, words, cause",
    [(1, "RuntimeError: the cat", 1), (1, "RuntimeError: Connection closed by peer", 0), (-9, "", 1)],
)
def test_a_rank_ended_by_the_launcher_is_no_cause(tmp_path: Path, code: int, words: str, cause: int) -> None:
    write_stderr(tmp_path, 0, "", 9)  # silent for longer
    write_stderr(tmp_path, 1, f"Traceback (most recent call last):\n  sit()\n{words}\n", 0)
    failures = {0: ProcessFailure(0, 10, -15, ""), 1: ProcessFailure(1, 10, code, "")}
    assert launch._cause(ChildFailedError("job", failures), tmp_path)[0] == cause


@pytest.mark.parametrize("codes, ages, cause", [((1, 2), (9, 0), 1), ((1, 1), (0, 9), 1), ((1, 1), (9, 0), 0)])
def test_the_cause_is_an_error_to_mend_or_the_first_to_fall_silent(
    tmp_path: Path, codes: tuple[int, ...], ages: tuple[float, ...], cause: int
) -> None:
    for rank in (0, 1):
        write_stderr(tmp_path, rank, "", ages[rank])
    failures = {rank: ProcessFailure(rank, 10, codes[rank], "") for rank in (0, 1)}
    assert launch._cause(ChildFailedError("job", failures), tmp_path)[0] == cause
