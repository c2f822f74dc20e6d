"""Starts a training job: in this process for one device, through torchrun's agent for several.

``train.sh`` and ``flame train`` call it. It reads NNODE, NGPU, MASTER_ADDR, MASTER_PORT and LOG_RANK from the
environment and passes the command line on as it is. The job is checked here, before any process group starts, so a
mistake is one line and exit code 2.
"""

import fcntl
import ipaddress
import logging
import os
import re
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)
from torch.distributed.run import get_args_parser
from torch.distributed.run import run as run_elastic

from flame import train
from flame.cli import USAGE_ERROR, run
from flame.config import help_text
from flame.errors import ConfigError
from flame.spec import check_sources

log = logging.getLogger(__name__)

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the address of an interface
_LOST_PEER = re.compile(r"(closed|reset) by peer|broken pipe|remote process exited|timed out", re.IGNORECASE)
_FAR_AWAY = "198.51.100.1"  # of TEST-NET-2 (RFC 5737): belongs to nobody, so the default route leads there


class Meeting(NamedTuple):
    """Where the agents of a job's nodes meet."""

    nodes: int
    address: str
    port: int
    seconds: int
    """How long a node waits for the others."""

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


class Route(NamedTuple):
    """How this node and the first one reach each other."""

    first: bool
    """Whether this is the first node."""
    address: str
    """This node's address."""
    interface: str | None
    """The network interface that has it, if known."""


def main(argv: list[str]) -> int:
    """Trains the job of the command line; returns the job's exit code."""
    if "-h" in argv or "--help" in argv:
        print(help_text(train.task_options("causal_lm")))
        return 0
    devices = torch.accelerator.device_count()
    nodes, processes = _number("NNODE", 1), _number("NGPU", max(1, devices))
    if devices and processes > devices:
        raise ConfigError(f"NGPU is {processes}, but this machine has {devices} accelerators; lower NGPU")
    address, port = _meeting_point(nodes)
    job = train.prepare(argv, world_size=nodes * processes)
    check_sources(job)
    if nodes * processes == 1:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
        return train.run_job(job)
    meeting = Meeting(nodes, address, port, job.config.comm.init_timeout_seconds)
    return _run_agent(argv, meeting, processes, Path(job.config.job.dump_folder, "logs"))


def _meeting_point(nodes: int) -> tuple[str, int]:
    """MASTER_ADDR and MASTER_PORT; one node meets itself, whatever the environment says of others."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if nodes > 1 and os.environ.get(name, "") in ("", "0"):
            raise ConfigError(
                f"NNODE is {nodes}, but {name} is not set; give every node the first's address and a free port there"
            )
    port = _number("MASTER_PORT", 0, range(65536))
    return (os.environ["MASTER_ADDR"] if nodes > 1 else "127.0.0.1"), port


def _run_agent(argv: list[str], meeting: Meeting, processes: int, logs: Path) -> int:
    """Runs ``python -m flame.train`` on every device of this node under torchrun's agent."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # torchrun's own prefix counts the ranks of each node from 0.
    os.environ.setdefault("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "[rank${rank}]:")
    # A folder for this agent alone: nodes share the run folder, and the ranks of each are counted from 0.
    logs = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-{os.getpid()}"
    options = {
        "nnodes": meeting.nodes,
        "nproc-per-node": processes,
        "rdzv-backend": "c10d",
        "local-ranks-filter": os.environ.get("LOG_RANK", "0"),
        "role": "rank",
        "tee": 3,
        "log-dir": logs,
        **_rendezvous(meeting),
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    try:
        run_elastic(get_args_parser().parse_args([*words, "-m", "flame.train", *argv]))
    except ChildFailedError as error:
        rank, failure = _cause(error, logs)
        return _end(_how_it_ended(rank, failure, logs), failure.exitcode if failure.exitcode > 0 else 1)
    except SignalException as error:
        return 128 + error.sigval
    except RendezvousTimeoutError:
        raise ConfigError(_who_is_missing(meeting)) from None
    except RendezvousClosedError:
        return _end(f"the run that nodes met for at {meeting} is ending; start again once it has ended on all nodes")
    except RendezvousConnectionError:
        return _end(f"no connection to the first node at {meeting}, or none any more; see its output")
    return 0


def _rendezvous(meeting: Meeting) -> dict[str, str | int]:
    """torchrun's options of how agents meet; may wait for the first node."""
    if meeting.nodes == 1:
        return {"rdzv-endpoint": f"127.0.0.1:{meeting.port}", "local-addr": "127.0.0.1"}
    route = _find_route(meeting.address)
    if route.interface:
        # Left alone, gloo listens at the address of the host's own name, which is often 127.0.x.x: no other node gets
        # there. NCCL looks for itself, and may want more than one interface.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", route.interface)
    role = "the first" if route.first else "one"
    log.info("%s is %s of %d nodes; they meet at %s", route.address, role, meeting.nodes, meeting)
    join = f"join_timeout={meeting.seconds}"
    if route.first:
        # torchrun takes its host's name for the address and would not see that it is the first: on 127.0.0.1 it does,
        # and a second agent of the same machine finds the port taken and comes as a guest.
        return {"rdzv-endpoint": f"127.0.0.1:{meeting.port}", "rdzv-conf": join, "local-addr": route.address}
    _wait_for_first_node(meeting)
    # Ranks follow the order of the agents' addresses as text, and only the first is ever connected to. With a letter
    # after all digits in front, rank 0 is on the first node: what it shows is seen there, and torchrun's store, which
    # is there too, stays until rank 0 has exported.
    endpoint = f"[{meeting.address}]" if ":" in meeting.address else meeting.address
    return {
        "rdzv-endpoint": f"{endpoint}:{meeting.port}",
        "rdzv-conf": f"{join},is_host=false",
        "local-addr": f"~{route.address}",
    }


def _find_route(master: str) -> Route:
    """How this node reaches the first one: a UDP socket is connected, which sends nothing but chooses an address."""
    try:
        found = socket.getaddrinfo(master, None, type=socket.SOCK_DGRAM)
    except socket.gaierror:
        raise ConfigError(
            f"MASTER_ADDR is '{master}', a name unknown here; set it to the first node's address"
        ) from None
    # IPv4 first, as the interface of an IPv6 address is not looked up below.
    target = str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
    address = _source(target)
    if address is None:
        raise ConfigError(f"MASTER_ADDR is '{master}' ({target}), but no network of this machine leads there")
    first = _is_here(target)
    if ipaddress.ip_address(target).is_loopback and master not in ("localhost", target):
        # Debian's /etc/hosts gives the host's own name a loopback address, which is of no use to the other nodes.
        address = _source(_FAR_AWAY) or address
    return Route(first, address, _interface(address))


def _source(target: str) -> str | None:
    """The address from which this machine would reach another one, or None without a route."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((target, 9))
        return probe.getsockname()[0]
    return None


def _is_here(address: str) -> bool:
    """Whether an address is this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def _interface(address: str) -> str | None:
    """The network interface with an IPv4 address, or None if it cannot be told."""
    if not sys.platform.startswith("linux"):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("40s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def _wait_for_first_node(meeting: Meeting) -> None:
    """Returns once the first node listens. torchrun would wait too, but for 60 s and with a page of warnings."""
    deadline = time.monotonic() + meeting.seconds
    while True:
        left = deadline - time.monotonic()
        try:
            socket.create_connection((meeting.address, meeting.port), timeout=max(1.0, min(5.0, left))).close()
            return
        except OSError:
            if left <= 0:
                raise ConfigError(_who_is_missing(meeting)) from None
        time.sleep(max(0.0, min(1.0, left)))


def _who_is_missing(meeting: Meeting) -> str:
    return (
        f"{meeting.nodes} nodes did not meet at {meeting} within {meeting.seconds} s; start the same command on each "
        "with the same NNODE, MASTER_ADDR (the first node's) and MASTER_PORT, or raise comm.init_timeout_seconds"
    )


def _end(message: str, code: int = 1) -> int:
    print(f"flame: error: {message}", file=sys.stderr)
    return code


def _cause(error: ChildFailedError, logs: Path) -> tuple[int, ProcessFailure]:
    """The failure of this node that the others follow from: one the user can mend, else one that neither tells of a
    lost peer nor is an end by SIGTERM, which torchrun sends to those left; else the one that fell silent first.

    Ranks that lose a peer fail within a second of it, so torchrun's clock of seconds does not tell them apart.
    """

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, float]:
        failure = item[1]
        written = [path.stat().st_mtime for path in _stderr(logs, failure.local_rank)]
        follows = failure.exitcode == -signal.SIGTERM or bool(_LOST_PEER.search(_last_words(logs, failure.local_rank)))
        return failure.exitcode != USAGE_ERROR, follows, max(written, default=0.0)

    return min(error.failures.items(), key=order)


def _how_it_ended(rank: int, failure: ProcessFailure, logs: Path) -> str:
    """What happened to a rank, with its own last words unless its output is shown anyway."""
    killed = failure.exitcode < 0
    how = f"was ended by {failure.signal_name()}" if killed else f"ended with exit code {failure.exitcode}"
    shown = os.environ.get("LOG_RANK", "0").split(",")
    words = "" if str(failure.local_rank) in shown else _last_words(logs, failure.local_rank)
    return f"rank {rank} {how}{f': {words}' if words else ''}; see {logs}"


def _last_words(logs: Path, local_rank: int) -> str:
    """The last error line a rank of this node wrote, else the error of its last traceback, else nothing."""
    text = "\n".join(path.read_text(errors="replace") for path in _stderr(logs, local_rank))
    text = re.sub(r"^\[rank\d+\]: ?", "", text, flags=re.MULTILINE)  # torch puts it before every line of a traceback
    lines = re.findall(r"^flame: error: (.+)$", text, re.MULTILINE)
    _, found, traceback = text.rpartition("Traceback (most recent call last):\n")
    if not lines and found:
        lines = re.findall(r"^\S.*$", traceback, re.MULTILINE)[:1]
    return lines[-1] if lines else ""


def _stderr(logs: Path, local_rank: int) -> list[Path]:
    return list(logs.glob(f"*/attempt_*/{local_rank}/stderr.log"))


def _number(name: str, default: int, valid: range = range(1, sys.maxsize)) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) not in valid:
        most = f" and at most {valid[-1]}" if valid.stop < sys.maxsize else ""
        raise ConfigError(f"environment variable {name} is '{text}'; set it to a number of at least {valid[0]}{most}")
    return int(text)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
