"""``flame data prepare`` as its user meets it: results, restarts, refusals, reports."""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prepare_stand_ins import Drivers, contents, prose, write_toml

from flame.cli import main

DOCUMENTS = 240


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Several files of prose, with copies, near copies, short texts and bad rows among them."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [prose(seed) for seed in range(DOCUMENTS)]
    texts += (
        texts[:20] + [f"{text}\nOne more sentence at the end of it." for text in texts[20:40]] + ["Too short."] * 10
    )
    random.Random(0).shuffle(texts)
    for number in range(6):
        rows = [json.dumps({"text": text, "url": f"http://x/{i}"}) for i, text in enumerate(texts[number::6])]
        (folder / f"part{number}.jsonl").write_text("\n".join([*rows, "not json"]) + "\n")
    return folder


@pytest.fixture
def write_job(tmp_path: Path, corpus: Path) -> Callable[..., Path]:
    def write(name: str, **settings: Any) -> Path:
        return write_toml(
            tmp_path / f"{name}.toml",
            {
                "inputs": [{"path": str(corpus)}],
                "output.folder": str(tmp_path / name),
                "output.format": "parquet",
                "split.validation": 0.1,
                "executor.task_bytes": 50_000,
                "executor.workers": 2,
                **{key.replace("__", "."): value for key, value in settings.items()},
            },
        )

    return write


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drivers]:
    made = Drivers(tmp_path_factory.mktemp("drivers") / "said")
    yield made
    made.close()


def run(capfd: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str]:
    """Runs the verb in this process; returns the exit code and what the user reads."""
    capfd.readouterr()
    code = main(["data", "prepare", *map(str, words)])
    out, err = capfd.readouterr()
    return code, out + err


def test_a_corpus_is_prepared_and_accounted_for(write_job: Callable[..., Path], tmp_path: Path, capfd: Any) -> None:
    code, said = run(capfd, write_job("out"))
    assert code == 0, said
    out = tmp_path / "out"
    found = json.loads((out / "report.json").read_text())
    steps = {step["name"]: step for step in found["steps"]}
    assert steps["read"]["kept"]["documents"] == DOCUMENTS + 50 and steps["read"]["dropped"]["documents"] == 6
    assert steps["gopher_quality"]["dropped"]["documents"] == 10
    assert steps["exact"]["dropped"]["documents"] == 20
    assert 18 <= steps["minhash"]["dropped"]["documents"] <= 20
    written = found["written"]
    left = steps["minhash"]["kept"]["documents"]
    assert written["train"]["documents"] + written["val"]["documents"] == left
    rows = {split: pq.read_table(out / split).num_rows for split in ("train", "val")}
    assert rows == {split: written[split]["documents"] for split in rows}
    for before, after in zip(found["steps"], found["steps"][1:], strict=False):  # nothing vanishes between two steps
        assert after["kept"]["documents"] + after["dropped"]["documents"] == before["kept"]["documents"]
    report = (out / "report.md").read_text()
    for words in (
        "too few words",
        "copy of another document",
        "near duplicate",
        "not JSON",
        "Too short.",
        "| en |",
        "part0",
    ):
        assert words in report, words
    assert (out / "report.png").is_file() and sorted(os.listdir(out / ".prepare")) == [
        "driver.lock",
        "job.json",
        "logs",
        "notes",
        "plan",
        "published",
        "workers.lock",
    ]
    draft = out / ".prepare" / "notes" / "exact" / ".00000.json.1.2.tmp"  # as a killed task leaves it
    draft.touch()
    code, said = run(capfd, write_job("out"))
    assert code == 0 and "is finished" in said and not draft.exists()


def test_the_result_depends_on_neither_workers_nor_tasks(
    write_job: Callable[..., Path], tmp_path: Path, capfd: Any
) -> None:
    assert run(capfd, write_job("few", executor__workers=1, executor__task_bytes=10_000_000))[0] == 0
    assert run(capfd, write_job("many", executor__workers=3, executor__task_bytes=1))[0] == 0
    assert contents(tmp_path / "few") == contents(tmp_path / "many") != {}


def test_other_settings_in_the_same_folder_are_refused_until_a_restart(
    write_job: Callable[..., Path], tmp_path: Path, corpus: Path, capfd: Any
) -> None:
    assert run(capfd, write_job("out"))[0] == 0
    job = write_job("out", dedup__minhash__enable=False, executor__workers=1)
    code, said = run(capfd, job)
    assert code == 2 and "dedup.minhash.enable = true, not false" in said and "--restart" in said
    assert len(said.strip().splitlines()) == 1
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    (corpus / "part0.jsonl").unlink()
    assert run(capfd, job, "--restart")[0] == 0
    steps = [step["name"] for step in json.loads((tmp_path / "out" / "report.json").read_text())["steps"]]
    assert "minhash" not in steps and (tmp_path / "out" / "mine.txt").is_file()


def test_a_folder_with_results_of_other_origin_is_left_alone(
    write_job: Callable[..., Path], tmp_path: Path, capfd: Any
) -> None:
    (tmp_path / "out" / "train").mkdir(parents=True)
    for words in ([], ["--restart"]):
        code, said = run(capfd, write_job("out"), *words)
        assert code == 2 and "name another" in said
    assert (tmp_path / "out" / "train").is_dir()


def test_inputs_that_change_between_two_runs_are_refused(
    write_job: Callable[..., Path], corpus: Path, capfd: Any
) -> None:
    (corpus / "part9.jsonl.gz").write_bytes(b"\x1f\x8bno gzip")
    code, said = run(capfd, write_job("out"))
    assert code == 2 and "part9.jsonl.gz is damaged at byte 0" in said and "read.on_bad_file" in said
    (corpus / "part9.jsonl.gz").unlink()
    code, said = run(capfd, write_job("out"))
    assert code == 2 and "1 input files have changed" in said and "part9.jsonl.gz" in said


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--dedup.minhash.enabel=false"],
            "Unknown key 'dedup.minhash.enabel' on the command line. Did you mean 'dedup.minhash.enable'?",
        ),
        (["--filters.min_words", "3"], "Did you mean 'filters.gopher_quality.min_words'?"),
        (["--dedup.minhash.buckets=many"], "dedup.minhash.buckets = 'many' on the command line must be an integer"),
        (["--inputs.0.format=jsonlines"], "must be one of parquet, jsonl"),
        (["--inputs.0.skip=gopher"], "inputs.skip names 'gopher', which is no step."),
        (["--inputs.5.limit=1"], "inputs has no entry 5"),
        (["--output.format=tokens"], "needs output.tokenizer"),
        (["--executor.kind=slurm"], "needs a partition"),
        (["--executor.kind=ray"], "pip install ray"),
        (["--language.keep=klingon"], "language.keep names 'klingon'"),
        (["--filters.gopher_quality.min_words=100000"], "no document is left"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    words: list[str], message: str, write_job: Callable[..., Path], capfd: Any
) -> None:
    if "ray" in words[0] and importlib.util.find_spec("ray"):
        pytest.skip("ray is installed")
    code, said = run(capfd, write_job("out"), *words)
    last = said.strip().splitlines()[-1]
    assert code == 2 and last.startswith("flame: error:") and message in last, said


def test_bare_flags_dry_runs_and_lists(write_job: Callable[..., Path], tmp_path: Path, capfd: Any) -> None:
    code, said = run(capfd, write_job("out"), "--dry-run", "--no-such")
    assert code == 2 and "no_such" in said
    code, said = run(capfd, write_job("out"), "--dry-run", "--executor.keep_work")
    assert code == 0 and "read (" in said and not (tmp_path / "out").exists()
    code, said = run(capfd, "--list")
    assert code == 0 and "dedup.minhash.buckets = 14  # an integer" in said
    assert run(capfd)[0] == 2 and run(capfd, "--help")[0] == 0


def test_nothing_to_read_is_said(write_job: Callable[..., Path], corpus: Path, capfd: Any) -> None:
    for path in corpus.iterdir():
        path.write_text("")
    code, said = run(capfd, write_job("out"))
    assert code == 2 and "no document is left" in said and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("goes_on", [False, True])
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_later(
    goes_on: bool, write_job: Callable[..., Path], tmp_path: Path, drivers: Drivers
) -> None:
    drivers.start(write_job("out"), largest=40 << 10)
    assert drivers.wait() == 2, drivers.log.read_text()
    said = drivers.log.read_text()
    last = said.strip().splitlines()[-1]
    assert last.startswith("flame: error:") and "File too large" in last and "run the same command again" in last
    assert "Traceback" not in said and contents(tmp_path / "out") == {}
    assert not list((tmp_path / "out" / ".prepare" / "files").rglob("*.tmp"))
    for name in ("out", "other") if goes_on else ():
        drivers.start(write_job(name))
        assert drivers.wait() == 0, drivers.log.read_text()
    assert contents(tmp_path / "out") == contents(tmp_path / "other") and goes_on == bool(contents(tmp_path / "out"))


def test_two_preparations_do_not_work_in_one_folder(
    write_job: Callable[..., Path], tmp_path: Path, drivers: Drivers, capfd: Any
) -> None:
    drivers.start(write_job("out"))
    while not (tmp_path / "out" / ".prepare" / "job.json").is_file():
        time.sleep(0.01)
    code, said = run(capfd, write_job("out"))
    assert code == 2 and "another preparation is at work" in said
    assert drivers.wait() == 0


def _killed_at_random(job: Path, out: Path, kills: int, seed: int, drivers: Drivers) -> None:
    """Starts and kills a preparation until it was killed as often as wanted, then lets it finish."""
    drawn = random.Random(seed)
    begin = time.monotonic()
    drivers.start(job, f"--output.folder={out}-whole")
    assert drivers.wait() == 0, drivers.log.read_text()
    whole, wanted = time.monotonic() - begin, contents(out.with_name(out.name + "-whole"))
    while kills:
        pid = drivers.start(job)
        time.sleep(drawn.uniform(0.1, 0.7) * whole)
        # The driver alone, as the kernel would when memory runs out, or all of it, as a cluster does.
        with contextlib.suppress(ProcessLookupError):  # it was quicker than that
            (os.kill if drawn.random() < 0.5 else os.killpg)(pid, signal.SIGKILL)
        if drivers.wait():
            kills -= 1
        else:  # done before it was killed: begin again
            assert contents(out) == wanted
            shutil.rmtree(out)
    drivers.start(job)
    assert drivers.wait() == 0, drivers.log.read_text()
    assert contents(out) == wanted != {}


@pytest.mark.slow  # stage by stage it is tried in test_prepare_interrupted
def test_a_preparation_killed_at_random_ends_with_the_same_bytes(
    write_job: Callable[..., Path], tmp_path: Path, drivers: Drivers
) -> None:
    _killed_at_random(write_job("out"), tmp_path / "out", 2, 0, drivers)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_preparation_killed_twenty_times_ends_with_the_same_bytes(
    seed: int, write_job: Callable[..., Path], tmp_path: Path, drivers: Drivers
) -> None:
    _killed_at_random(write_job("out"), tmp_path / "out", 4, seed + 1, drivers)


def test_a_worker_that_is_killed_ends_the_run_in_one_line(
    write_job: Callable[..., Path], tmp_path: Path, drivers: Drivers
) -> None:
    pid = drivers.start(write_job("out", executor__workers=1))
    log = tmp_path / "out" / ".prepare" / "logs" / "read" / "logs" / "task_00000.log"
    while not log.is_file():
        time.sleep(0.01)
    os.kill(_worker_of(pid), signal.SIGKILL)
    assert drivers.wait() == 2
    assert "a worker process was killed" in drivers.log.read_text().splitlines()[-1]


def _worker_of(pid: int) -> int:
    """A process that the fork server of ``pid`` has forked."""
    parents = {
        int(path.name): int((path / "stat").read_text().rpartition(")")[2].split()[1])
        for path in Path("/proc").iterdir()
        if path.name.isdecimal() and (path / "stat").is_file()
    }
    return next(child for child, parent in parents.items() if parents.get(parent) == pid)
