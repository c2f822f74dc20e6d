"""One rank of ``tests.runs.Pool``: reads a request a line, trains the job, answers with the error or "".

python -m tests.rank RANK LOG_FILE
"""

import importlib
import json
import os
import sys
import time
import traceback
from contextlib import nullcontext
from types import SimpleNamespace

import torch
import torch.distributed as dist

from flame.compat import end_process_groups
from flame.train import prepare
from flame.trainer import train


def serve(rank: int, log: str) -> None:
    """Answers requests until standard input closes; all other output goes to ``log``."""
    import torchtitan.train

    # torchtitan sleeps two seconds after training.
    torchtitan.train.time = SimpleNamespace(perf_counter=time.perf_counter, sleep=lambda seconds: None)
    answers = os.fdopen(os.dup(1), "w")
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    for line in sys.stdin:
        answers.write(json.dumps({"error": _error_of(json.loads(line), rank)}) + "\n")
        answers.flush()


def _error_of(request: dict, rank: int) -> str:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(request["world"]),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(request["port"]),
    )
    module, _, name = request["patch"].partition(":")
    patch = getattr(importlib.import_module(module), name)() if module else nullcontext()
    try:
        with patch:
            train(prepare(request["argv"], request["world"]))
    except Exception as error:  # whatever it is, the test that asked for the job has to see it
        traceback.print_exc()
        if dist.is_initialized():
            end_process_groups()  # a rank of a real job ends as a whole instead
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
