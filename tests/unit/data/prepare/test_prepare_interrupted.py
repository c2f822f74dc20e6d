"""Stages that are killed and begun again write the same bytes; a full disk leaves no half file under a final name."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prepared_texts import digests

from flame.data.shards import read_manifest

_COMMON = """
import os, random, resource, signal, sys, time
from pathlib import Path
import prepared_texts as helper
from flame.data.prepare.options import Output, Split
from flame.errors import FlameError

texts = helper.random_texts(300)
texts += [text.upper() for text in texts[::7]] + [text + " and more" for text in texts[::5]]


def builder(folder, form, shards=8, **sections):
    tokenizer = "" if form == "parquet" else helper.TOKENIZER
    output = Output(format=form, tokenizer=tokenizer, shard_bytes=sum(map(len, texts)) // shards, row_length=65)
    return helper.make_builder(Path(folder), texts, 3, output=output, split=Split(0.2), **sections)
"""

# Forks of a process that has imported everything and begun nothing: starting an interpreter takes longer than the work.
_KILL = """
def begin(folder):
    child = os.fork()
    if not child:
        helper.run_stages(builder(folder, "parquet"))
        os._exit(0)
    return child


def finish(folder):
    start = time.perf_counter()
    assert os.waitpid(begin(folder), 0)[1] == 0
    return time.perf_counter() - start


folder, kills = sys.argv[1], int(sys.argv[2])
seconds = finish(folder + "/whole")
draw = random.Random(kills)
done = 0
while kills:
    child = begin(folder + "/killed")
    # Stages that are done are not done again: with every kill, less than the whole time is left.
    time.sleep(draw.random() * seconds / 2)
    os.kill(child, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL:
        kills -= 1
    else:  # done before it was killed: begin again
        done += 1
        os.rename(folder + "/killed", folder + f"/killed{done}")
finish(folder + "/killed")
"""

_FILL = """
folder, limit = sys.argv[1], int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for form in ("parquet", "tokens", "packed"):
    made = builder(f"{folder}/{form}", form, shards=2, dedup=helper.KEEP_ALL)
    helper.run_stages(made, until="write-shards")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        helper.run_stages(made)
    except (FlameError, OSError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    files = [path.name for path in made.published.rglob("*") if path.is_file()]
    assert not [name for name in files if not name.endswith(".idx")], files
    helper.run_stages(made)
"""


# One interpreter that has imported everything forks a process for every script.
_INTERPRETER = (
    _COMMON
    + """
import json, traceback
for line in sys.stdin:
    script, *sys.argv[1:], said = json.loads(line)
    child = os.fork()
    if not child:
        file = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1), os.dup2(file, 2)
        try:
            exec(script)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERPRETER], stdin=pipe, stdout=pipe, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    yield process
    process.kill()
    process.communicate()


def run(interpreter: subprocess.Popen[str], script: str, folder: Path, number: int) -> list[str]:
    """Runs a script in a process of its own; returns what it printed."""
    assert interpreter.stdin and interpreter.stdout
    said = folder.with_name(f"{folder.name}-said")
    interpreter.stdin.write(json.dumps([script, str(folder), str(number), str(said)]) + "\n")
    interpreter.stdin.flush()
    assert interpreter.stdout.readline() == "0\n", said.read_text()
    return said.read_text().splitlines()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_stages_killed_at_random_moments_write_the_same_bytes(tmp_path, kills, interpreter):
    run(interpreter, _KILL, tmp_path, kills)
    whole = [digests(tmp_path / "whole" / part) for part in ("published", "notes/written")]
    assert len(whole[0]) >= 6
    for killed in tmp_path.glob("killed*"):
        assert digests(killed / "published") == whole[0]
        # Drafts of a killed process stay among the notes until all is done; nobody reads them.
        written = digests(killed / "notes/written").items()
        assert {name: digest for name, digest in written if not name.startswith(".")} == whole[1]


def test_a_full_disk_is_an_error_and_leaves_no_half_shard(tmp_path, interpreter):
    told = run(interpreter, _FILL, tmp_path, 3000)
    assert len(told) == 3 and all("File too large" in line for line in told), told
    assert told[1].startswith("DataError: cannot write ") and "shard_0000" in told[1]
    documents = sum(entry.documents for entry in read_manifest(tmp_path / "tokens/published/train").shards)
    assert 300 < documents < 403
