"""Several nodes: two agents of one machine, and two network namespaces, which see each other only over a wire.

In a namespace the machine's own name leads to the loopback address, as on many clusters, so everything that asks for
the host's name instead of MASTER_ADDR's network fails here.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_resume import alive, children
from tests.runs import ROOT, Materials, Run, environment, launch, read_records, write_job

BOUND = 60
"""Seconds within which all nodes have to end after one of them has failed."""


@dataclass(frozen=True)
class Network:
    """Two nodes."""

    address: str
    """Of the first."""
    enter: tuple[list[str], list[str]] = ([], [])
    """What goes before a command that runs on the first, on the second."""


@pytest.fixture
def namespaces() -> Iterator[Network]:
    """Two network namespaces joined by a veth pair; the addresses exist nowhere else."""
    name = f"flame-{secrets.token_hex(3)}"
    wire, ends = name.replace("flame-", "fl"), (f"{name}-0", f"{name}-1")
    addresses = ("10.213.7.20", "10.213.7.10")  # the first node's is the greater: no order of addresses makes it first
    made: list[str] = []

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        try:
            for end in ends:
                ip("netns", "add", end)
                made.append(end)
            peer = ["peer", "name", f"{wire}1", "netns", ends[1]]
            ip("link", "add", f"{wire}0", "netns", ends[0], "type", "veth", *peer)
            for index, (end, address) in enumerate(zip(ends, addresses, strict=True)):
                ip("-n", end, "address", "add", f"{address}/24", "dev", f"{wire}{index}")
                ip("-n", end, "link", "set", "lo", "up")
                ip("-n", end, "link", "set", f"{wire}{index}", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"network namespaces cannot be made here (needs iproute2 and root): {reason.strip()}")
        yield Network(addresses[0], (["ip", "netns", "exec", ends[0]], ["ip", "netns", "exec", ends[1]]))
    finally:
        for end in made:
            ip("netns", "delete", end)


@pytest.fixture(params=["one machine", pytest.param("two namespaces", marks=pytest.mark.slow)])
def network(request: pytest.FixtureRequest) -> Network:
    """Both kinds of nodes."""
    return Network("127.0.0.1") if request.param == "one machine" else request.getfixturevalue("namespaces")


class Node:
    """``train.sh`` on one node; its output is in a file, as nobody reads it while it runs."""

    def __init__(self, network: Network, index: int, job: Path, port: int, processes: int, address: str = "") -> None:
        self.log = job.with_name(f"{job.stem}-node-{index}.log")
        meeting = {"NNODE": "2", "MASTER_ADDR": address or network.address, "MASTER_PORT": str(port)}
        command = [*network.enter[index], "bash", str(ROOT / "train.sh"), "--job.config_file", str(job)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                env={**environment(processes, meeting), "PYTHON": sys.executable},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float) -> int:
        """The exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended in {seconds:.0f} s:\n{self.output[-3000:]}") from None

    def ranks(self) -> list[int]:
        """The pids of its training processes."""
        found = []
        for pid in children(self.process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            found += [pid] if b"flame.train" in words else []
        return found


@contextmanager
def nodes(network: Network, job: Path, processes: int = 1) -> Iterator[list[Node]]:
    """Starts a job on both nodes, and leaves no process behind."""
    port = free_port()
    started = [Node(network, index, job, port, processes) for index in (0, 1)]
    try:
        yield started
    finally:
        for node in started:
            for pid in {node.process.pid, *children(node.process.pid)}:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            node.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def job_of(materials: Materials, folder: Path, changes: dict[str, Any] | None = None) -> Path:
    return write_job(
        materials, folder, {"comm.init_timeout_seconds": 60, "training.local_batch_size": 1, **(changes or {})}
    )


def assert_same_losses(run: Run, alone: Run) -> None:
    assert [record["step"] for record in run.records] == [1, 2, 3, 4, 5]
    for name in ("loss", "grad_norm", "tokens"):
        assert list(map(repr, run.series(name))) == list(map(repr, alone.series(name))), name


@pytest.fixture(scope="session")
def one_node(materials: Materials, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The job with 2 processes of one agent."""
    folder = tmp_path_factory.mktemp("one-node") / "run"
    run = launch(job_of(materials, folder), folder, processes=2)
    assert run.code == 0, run.output
    return run


def test_two_nodes_train_as_one_does(materials: Materials, tmp_path: Path, network: Network, one_node: Run) -> None:
    with nodes(network, job_of(materials, tmp_path / "run")) as (first, second):
        assert (first.wait(240), second.wait(60)) == (0, 0), first.output + second.output
    assert_same_losses(Run(tmp_path / "run"), one_node)
    assert "step 5/5  loss" in first.output + second.output
    assert "step 5/5  loss" not in second.output or network.enter == ([], []), "rank 0 is on the first node"
    assert len(list((tmp_path / "run" / "logs").iterdir())) == 2, "each node has a log folder of its own"


@pytest.mark.slow
def test_two_nodes_of_two_processes_train_as_one_of_four(
    materials: Materials, tmp_path: Path, network: Network
) -> None:
    alone = launch(job_of(materials, tmp_path / "alone"), tmp_path / "alone", processes=4)
    assert alone.code == 0, alone.output
    with nodes(network, job_of(materials, tmp_path / "run"), processes=2) as (first, second):
        assert (first.wait(240), second.wait(60)) == (0, 0), first.output + second.output
    assert_same_losses(Run(tmp_path / "run"), alone)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.slow
def test_all_nodes_end_when_a_process_of_one_is_killed(
    materials: Materials, tmp_path: Path, network: Network, victim: int
) -> None:
    job = job_of(materials, tmp_path / "run", {"training.steps": 100_000, "checkpoint.enable": False})
    with nodes(network, job) as both:
        wait_for_steps(both, tmp_path / "run")
        below = [pid for node in both for pid in children(node.process.pid)]
        (rank,) = both[victim].ranks()
        killed = time.monotonic()
        os.kill(rank, signal.SIGKILL)
        assert all([node.wait(killed + BOUND - time.monotonic()) not in (0, None) for node in both])
        assert "was ended by SIGKILL" in both[victim].output.splitlines()[-1]
        assert both[1 - victim].output.splitlines()[-1].startswith("flame: error: ")
        assert not [pid for pid in below if alive(pid)]


@pytest.mark.slow
def test_the_same_commands_go_on_after_a_process_was_killed(materials: Materials, tmp_path: Path) -> None:
    folder, network = tmp_path / "run", Network("127.0.0.1")
    with nodes(network, job_of(materials, folder, {"training.steps": 100_000, "checkpoint.interval": 2})) as both:
        wait_for_steps(both, folder, 6)
        os.kill(both[1].ranks()[0], signal.SIGKILL)
        assert all([node.wait(BOUND) != 0 for node in both])
    saved = max(int(path.name.partition("-")[2]) for path in (folder / "checkpoint").glob("step-*"))
    with nodes(network, job_of(materials, folder, {"training.steps": saved + 3})) as both:
        assert [node.wait(240) for node in both] == [0, 0], "".join(node.output for node in both)
        assert any(f"Training starts at step {saved + 1}" in node.output for node in both)
    assert [record["step"] for record in read_records(folder)] == list(range(1, saved + 4))


@pytest.mark.slow
def test_training_ends_on_all_nodes_when_the_wire_is_cut(
    materials: Materials, tmp_path: Path, namespaces: Network
) -> None:
    changes = {"training.steps": 100_000, "checkpoint.enable": False, "comm.train_timeout_seconds": 10}
    with nodes(namespaces, job_of(materials, tmp_path / "run", changes)) as both:
        wait_for_steps(both, tmp_path / "run")
        cut_off = both[1].ranks()
        namespace = namespaces.enter[1][-1]
        subprocess.run(["ip", "-n", namespace, "link", "set", f"fl{namespace.split('-')[1]}1", "down"], check=True)
        assert both[0].wait(BOUND) != 0
        deadline = time.monotonic() + BOUND
        while any(map(alive, cut_off)) and time.monotonic() < deadline:
            time.sleep(0.1)
        # The agent that lost the first node's store is not waited for: torch reads from it until TCP gives up.
        assert not [pid for pid in cut_off if alive(pid)]


def wait_for_steps(both: list[Node], folder: Path, count: int = 2) -> None:
    deadline = time.monotonic() + 120
    while len(read_records(folder)) < count and time.monotonic() < deadline:
        assert all(node.process.poll() is None for node in both), "".join(node.output for node in both)
        time.sleep(0.1)
    assert read_records(folder), "".join(node.output for node in both)


def test_a_first_node_left_alone_says_so(materials: Materials, tmp_path: Path) -> None:
    job = job_of(materials, tmp_path / "run", {"comm.init_timeout_seconds": 2})
    node = Node(Network("127.0.0.1"), 0, job, free_port(), processes=1)
    assert node.wait(90) == 2
    last = node.output.splitlines()[-1]
    assert last.startswith("flame: error: 2 nodes did not meet at 127.0.0.1:"), node.output
    assert "Traceback" not in node.output


@pytest.mark.slow
def test_a_node_that_finds_no_first_one_says_so(materials: Materials, tmp_path: Path, namespaces: Network) -> None:
    job = job_of(materials, tmp_path / "run", {"comm.init_timeout_seconds": 2})
    node = Node(namespaces, 1, job, free_port(), processes=1, address="10.213.7.9")
    assert node.wait(90) == 2
    assert node.output.splitlines()[-1].startswith("flame: error: 2 nodes did not meet at 10.213.7.9:"), node.output
    assert "Traceback" not in node.output


def test_the_slurm_script_starts_one_agent_per_node(tmp_path: Path) -> None:
    stubs = {
        # More names than a pipe holds: whoever reads the first only would end the writer by SIGPIPE.
        "scontrol": '[[ "$*" == "show hostnames node[1-20000]" ]] && printf "node%d\\n" {1..20000}',
        "srun": 'echo "$NNODE $MASTER_ADDR $MASTER_PORT $SRUN_CPUS_PER_TASK"; printf "%s|" "$@"',
    }
    for name, line in stubs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "node[1-20000]", "JOB_ID": "1234567", "SUBMIT_DIR": "/flame", "CPUS_PER_TASK": "8"}
    done = subprocess.run(
        ["bash", str(ROOT / "docs" / "slurm.sh"), "--job.config_file", "my job.toml"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **{f"SLURM_{name}": value for name, value in slurm.items()}},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    variables, command = done.stdout.splitlines()
    assert variables == "20000 node1 24567 8"
    assert command == "--ntasks-per-node=1|--kill-on-bad-exit=1|bash|/flame/train.sh|--job.config_file|my job.toml|"
