"""A run that was interrupted, extended or moved to another number of processes is the run left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.runs import Materials, Run, environment, launch, read_records, write_job

LOG = {"checkpoint.interval": 4, "training.dataloader.num_workers": 2, "training.local_batch_size": 4}


def assert_same_run(run: Run, alone: Run, steps: int) -> None:
    assert [record["step"] for record in run.records] == list(range(1, steps + 1))
    for name in ("loss", "grad_norm", "lr", "bpb", "tokens"):
        assert list(map(repr, run.series(name))) == list(map(repr, alone.series(name))), name
    for left, right in ((run.weights(steps), alone.weights(steps)), (run.moments(steps), alone.moments(steps))):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


def children(pid: int) -> set[int]:
    """The processes below one, by /proc."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found |= {int(stat.parent.name)} | children(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_and_kill(job: Path, folder: Path, wait: float, processes: int = 1) -> set[int]:
    """Starts a job and kills it ``wait`` seconds after its first new step; returns the pids of its workers."""
    known = len(read_records(folder))
    first = read_records(folder)[-1]["step"] if known else 0
    command = [sys.executable, "-m", "flame.launch", "--job.config_file", str(job)]
    process = subprocess.Popen(
        command, env=environment(processes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        records = read_records(folder)
        if records and records[-1]["step"] > first:
            break
        time.sleep(0.01)
    time.sleep(wait)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    return workers


def assert_ended(pids: set[int], told: str) -> None:
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)], told


def kill_and_resume(materials: Materials, folder: Path, kills: int, steps: int) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"random.Random({seed})")
    drawn = random.Random(seed)
    jobs = {
        name: write_job(materials, folder / name, {**LOG, "training.steps": steps, "lr_scheduler.decay_ratio": 0.5})
        for name in ("alone", "killed")
    }
    alone = launch(jobs["alone"], folder / "alone")
    assert alone.code == 0, alone.output
    for _ in range(kills):
        workers = run_and_kill(jobs["killed"], folder / "killed", wait=drawn.uniform(0, 0.4))
        assert_ended(workers, "data workers outlive the process that started them")
    killed = launch(jobs["killed"], folder / "killed")
    assert killed.code == 0, killed.output
    assert_same_run(killed, alone, steps)


def test_a_run_killed_once_ends_like_the_run_left_alone(materials, tmp_path):
    kill_and_resume(materials, tmp_path, kills=1, steps=120)


@pytest.mark.slow
def test_a_run_killed_20_times_ends_like_the_run_left_alone(materials, tmp_path):
    kill_and_resume(materials, tmp_path, kills=20, steps=700)


def test_ranks_end_with_a_launcher_that_is_killed(materials, tmp_path):
    """They would train on, and write into the folder of the run that goes on."""
    job = write_job(materials, tmp_path / "run", {**LOG, "training.steps": 100_000})
    ranks = run_and_kill(job, tmp_path / "run", wait=0.2, processes=2)
    assert len(ranks) >= 2
    assert_ended(ranks, "ranks outlive the launcher")


def test_a_finished_run_can_be_extended(materials, pool, tmp_path):
    """With a schedule that does not look at the end, it is the longer run, to the last digit."""
    alone = pool.run(write_job(materials, tmp_path / "alone", {"training.steps": 12}), tmp_path / "alone")
    job = write_job(materials, tmp_path / "extended", {"training.steps": 5})
    for steps in (5, 9, 12):
        run = pool.run(job, tmp_path / "extended", "--training.steps", str(steps))
        assert run.code == 0, run.output
        assert len(run.records) == steps
    assert_same_run(run, alone, 12)


def test_a_finished_run_started_again_changes_nothing(materials, pool, tmp_path):
    job = write_job(materials, tmp_path / "run", {"training.steps": 3})
    pool.run(job, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = pool.run(job, tmp_path / "run")
    assert again.code == 0, again.output
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_run_that_cannot_go_on_keeps_the_job_it_was_started_with(materials, pool, tmp_path):
    job = write_job(materials, tmp_path / "run", {"training.steps": 2, "checkpoint.interval": 2})
    assert pool.run(job, tmp_path / "run").code == 0
    kept = (tmp_path / "run" / "config.toml").read_text()
    changes = {"training.steps": 4, "training.local_batch_size": 2, "data.lanes_per_row": 2}
    other = write_job(materials, tmp_path / "run", changes)
    run = pool.run(other, tmp_path / "run")
    assert run.code != 0 and "lanes" in run.output, run.output
    assert (tmp_path / "run" / "config.toml").read_text() == kept


def test_steps_logged_after_the_last_checkpoint_are_logged_once(materials, pool, tmp_path):
    """The run goes back to an earlier step by load_step, as it would after losing later ones."""
    job = write_job(materials, tmp_path / "run", {"training.steps": 8, "checkpoint.interval": 3})
    first = pool.run(job, tmp_path / "run").records
    again = pool.run(job, tmp_path / "run", "--checkpoint.load_step", "3")
    assert again.code == 0, again.output
    assert [record["step"] for record in again.records] == list(range(1, 9))
    assert again.series("loss") == [record["loss"] for record in first]


def test_a_run_goes_on_with_another_number_of_processes(materials, pool, tmp_path):
    alone = pool.run(write_job(materials, tmp_path / "alone", {"training.steps": 12}), tmp_path / "alone")
    job = write_job(materials, tmp_path / "moved")
    for steps, world in ((4, 1), (8, 2), (12, 1)):
        moved = pool.run(job, tmp_path / "moved", "--training.steps", str(steps), world=world)
        assert moved.code == 0, moved.output
    assert moved.series("loss") == pytest.approx(alone.series("loss"), rel=1e-5)
    assert moved.series("tokens") == alone.series("tokens")
    expected = alone.weights(12)
    for name, weight in moved.weights(12).items():
        assert (weight - expected[name]).norm() <= 1e-3 * expected[name].norm(), name
