"""Workers and whole processes killed at random moments: what follows is the stream left alone, to the last byte."""

import hashlib
import os
import pickle
import random
import signal
import time
from itertools import count, islice
from pathlib import Path

import pytest
from data_stand_ins import Data

from flame.errors import DataError

BATCHES = 160
FEW, MANY = 2, 20


def digest(batch):
    inputs, labels = batch
    tensors = [*inputs.values(), labels]
    return hashlib.blake2b(b"".join(tensor.numpy().tobytes() for tensor in tensors), digest_size=8).hexdigest()


def expected(make_loader, numbered, options):
    return [digest(batch) for batch in islice(make_loader(numbered, **options), BATCHES)]


def options_of(packing):
    return {"data": Data(packing=packing), "varlen": packing == "best_fit"}


def drawn():
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"random.Random({seed})")
    return random.Random(seed)


def workers_of(loader):
    return loader._close_pool.peek()[1].__self__.workers


def kill_workers(make_loader, numbered, packing, kills):
    options, rng = options_of(packing), drawn()
    found, state = [], {}
    wanted = expected(make_loader, numbered, options)
    for kill in range(kills + 1):
        loader = make_loader(numbered, workers=2, **options)
        loader.load_state_dict(state)
        iterator = iter(loader)
        try:
            for number in count():
                if len(found) == BATCHES:
                    break
                found.append(digest(next(iterator)))
                if kill < kills and number == rng.randrange(1, 2 + BATCHES // (2 * kills)):
                    os.kill(rng.choice(workers_of(loader)).process.pid, signal.SIGKILL)
        except DataError as error:
            assert "SIGKILL" in str(error)
        state = loader.state_dict()
        loader.close()
    assert found == wanted


def serve(make_loader, numbered, options, log: Path):
    """Goes on from the log, and writes every batch and the state after it there, until all is done or it is killed."""
    found, state = pickle.loads(log.read_bytes()) if log.exists() else ([], {})
    loader = make_loader(numbered, workers=1, **options)
    loader.load_state_dict(state)
    for batch in islice(loader, BATCHES - len(found)):
        found.append(digest(batch))
        draft = log.with_suffix(".draft")
        draft.write_bytes(pickle.dumps((found, loader.state_dict())))
        draft.replace(log)
        time.sleep(0.002)
    loader.close()


def run_forked(work, wait):
    """Runs ``work`` in a child process, killed after ``wait`` seconds; None leaves it alone."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_processes(make_loader, numbered, packing, kills, log):
    options, rng = options_of(packing), drawn()
    wanted = expected(make_loader, numbered, options)
    for _ in range(kills):
        run_forked(lambda: serve(make_loader, numbered, options, log), rng.uniform(0, 1.0))
    assert run_forked(lambda: serve(make_loader, numbered, options, log), None) == 0
    assert pickle.loads(log.read_bytes())[0] == wanted


def test_a_few_killed_workers_change_nothing(make_loader, numbered):
    kill_workers(make_loader, numbered, "best_fit", FEW)


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["stream", "best_fit", "rows"])
def test_20_killed_workers_change_nothing(make_loader, numbered, packing):
    kill_workers(make_loader, numbered, packing, MANY)


def test_a_few_killed_processes_change_nothing(make_loader, numbered, tmp_path):
    kill_processes(make_loader, numbered, "best_fit", FEW, tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["stream", "best_fit", "rows"])
def test_20_killed_processes_change_nothing(make_loader, numbered, packing, tmp_path):
    kill_processes(make_loader, numbered, packing, MANY, tmp_path / "log")
