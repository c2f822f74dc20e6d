"""Starts a training job: in this process for one device, through torchrun's agent for several.

``train.sh`` and ``flame train`` call it. It reads NNODE, NGPU, MASTER_ADDR, MASTER_PORT and LOG_RANK from the
environment and passes the command line on as it is. The job is checked here, before any process group starts, so a
mistake is one line and exit code 2.
"""

import os
import socket
import sys

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser
from torch.distributed.run import run as run_elastic

from flame import train
from flame.cli import run
from flame.config import help_text
from flame.errors import ConfigError
from flame.spec import check_sources


def main(argv: list[str]) -> int:
    """Trains the job of the command line; returns the job's exit code."""
    if "-h" in argv or "--help" in argv:
        print(help_text(train.task_options("causal_lm")))
        return 0
    devices = torch.accelerator.device_count()
    nodes, processes = _number("NNODE", 1), _number("NGPU", max(1, devices))
    if devices and processes > devices:
        raise ConfigError(f"NGPU is {processes}, but this machine has {devices} accelerators; lower NGPU")
    if nodes > 1 and os.environ.get("MASTER_PORT", "0") == "0":
        raise ConfigError(f"NNODE is {nodes}, but MASTER_PORT is not set; give every node the same free port")
    job = train.prepare(argv, world_size=nodes * processes)
    check_sources(job)
    if nodes * processes == 1:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
        return train.run_job(job)
    return _run_agent(argv, nodes, processes, os.path.join(job.config.job.dump_folder, "logs"))


def _run_agent(argv: list[str], nodes: int, processes: int, log_dir: str) -> int:
    """Runs ``python -m flame.train`` on every device of this node under torchrun's agent."""
    address, port = os.environ.get("MASTER_ADDR", "localhost"), os.environ.get("MASTER_PORT", "0")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    options = {
        "nnodes": nodes,
        "nproc-per-node": processes,
        "rdzv-backend": "c10d",
        "rdzv-endpoint": f"{address}:{port}",
        "local-ranks-filter": os.environ.get("LOG_RANK", "0"),
        "role": "rank",
        "tee": 3,
        "log-dir": log_dir,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    try:
        run_elastic(get_args_parser().parse_args([*words, "-m", "flame.train", *argv]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"flame: error: rank {rank} ended with exit code {failure.exitcode}; see {log_dir}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"environment variable {name} is '{text}'; set it to a number of at least 1")
    return int(text)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
