"""Whole downloads through the command line: layouts, conversion, selection, and what happens when they are killed."""

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from faulty_server import Faults, Server, limited_file_size, serve

from flame.cli import main as flame
from flame.data.download.command import main as command_line
from flame.data.download.convert import write_parquet
from flame.data.download.documents import read_documents
from flame.data.download.faults import DamagedFile
from flame.data.download.registry import Corpus
from flame.data.download.transfer import Link
from flame.files import move

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "the", "moon", "while", "it", "rained"]


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.data.download.command.Link", partial(Link, first_wait=0.001))


def texts(count: int, seed: int = 0) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS, k=drawn.randint(5, 200))) + " é" for _ in range(count)]


def jsonl(documents: list[str], **more: object) -> bytes:
    return b"".join(
        json.dumps({"text": text, "url": f"u{i}", **more}).encode() + b"\n" for i, text in enumerate(documents)
    )


def parquet(documents: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": documents}), sink)
    return sink.getvalue()


def wet(documents: list[str]) -> bytes:
    members = []
    for i, text in enumerate(documents):
        body = text.encode()
        head = (
            f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://x/{i}\r\nWARC-Date: 2024-12-01T00:00:00Z\r\n"
        )
        head += f"WARC-Record-ID: <urn:uuid:{i}>\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        members.append(gzip.compress(head.encode() + body + b"\r\n\r\n"))
    return b"".join(members)


def archive(files: dict[str, bytes]) -> bytes:
    if not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python cannot unpack archives safely, and flame refuses to")
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


def registry(tmp_path: Path, **tables: str) -> str:
    path = tmp_path / "my.toml"
    path.write_text("".join(f"[{name}]\n{table}\n" for name, table in tables.items()))
    return f"--registry={path}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> list[str]:
    return pq.read_table(path).column("text").to_pylist()


def test_every_format_becomes_parquet_that_training_reads(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = texts(50)
    urls = [
        server.put("/a.parquet", parquet(documents)),
        server.put("/b.jsonl", jsonl(documents)),
        server.put(
            "/c.jsonl.zst", zstandard.compress(jsonl(documents[:25])) + zstandard.compress(jsonl(documents[25:]))
        ),
        server.put("/d.json.gz", gzip.compress(jsonl(documents))),
        server.put("/e.txt", "<|end|>\n".join(documents).encode()),
        server.put("/f.warc.wet.gz", wet(documents)),
    ]
    table = f"files.train = {json.dumps(urls)}\nseparator = '<|end|>'\ncolumns = ['url']"
    out = tmp_path / "out"
    assert flame(["data", "download", "mine", registry(tmp_path, mine=table), f"--out={out}"]) == 0
    assert sorted(os.listdir(out / "train")) == [f"{name}.parquet" for name in "abcdef"]
    for name in "abcdef":
        assert read(out / "train" / f"{name}.parquet") == documents
    assert pq.read_table(out / "train" / "b.parquet").column("url").to_pylist()[7] == "u7"
    assert sorted(os.listdir(out)) == ["manifest.json", "train"]
    files = json.loads((out / "manifest.json").read_text())["files"]
    assert [entry["documents"] for entry in files] == [50] * 6
    assert f'path = "{out}/train"' in capsys.readouterr().out


def test_a_text_column_of_another_name_becomes_text(server: Server, tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"body": ["one", "", "two"], "id": [1, 2, 3]}), sink)
    urls = [server.put("/a.parquet", sink.getvalue()), server.put("/b.jsonl", b'{"body": "three"}')]
    table = registry(tmp_path, tinystories=f"files.train = {urls}\ntext_column = 'body'")  # instead of flame's entry
    assert flame(["data", "download", "tinystories", table, f"--out={tmp_path}/out"]) == 0
    rows = pq.read_table(tmp_path / "out/train/a.parquet").to_pylist()
    assert rows == [{"text": "one", "meta": '{"id": 1}'}, {"text": "two", "meta": '{"id": 3}'}]
    assert read(tmp_path / "out/train/b.parquet") == ["three"]


def test_a_column_that_is_not_there_ends_the_download(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.put("/a.parquet", parquet(["one"]))
    table = registry(tmp_path, mine=f"files.train = ['{url}']\ntext_column = 'body'")
    assert flame(["data", "download", "mine", table, f"--out={tmp_path}/out"]) == 2
    assert "a.parquet has no column 'body', only text: set text_column" in capsys.readouterr().err
    url = server.put("/b.jsonl", jsonl(["one", "two"]))
    table = registry(tmp_path, mine=f"files.train = ['{url}']\ntext_column = 'body'")
    assert flame(["data", "download", "mine", table, f"--out={tmp_path}/out"]) == 2
    assert "b.jsonl: none of its records has a text in 'body', set text_column" in capsys.readouterr().err
    assert not (tmp_path / "out/train").exists()


def test_what_cannot_be_used_is_counted_and_the_rest_is_kept(server: Server, tmp_path: Path) -> None:
    lines = b'{"text": "good", "n": [1, {"deep": "\\ud83d"}], "url": 3}\n'
    lines += b'not json\n[1]\n{"body": "x"}\n{"text": "\\ud83d"}\n\n'
    url = server.put("/x.jsonl", lines + b'{"text": " "}\n{"text": "last, without a line end"}')
    out = tmp_path / "out"
    table = f"files.train = ['{url}']\ncolumns = ['url']"
    flame(["data", "download", "mine", registry(tmp_path, mine=table), f"--out={out}"])
    assert read(out / "train/x.parquet") == ["good", "last, without a line end"]
    rows = pq.read_table(out / "train/x.parquet").to_pylist()
    assert rows[0]["url"] == "3" and json.loads(rows[0]["meta"])["n"][0] == 1
    (entry,) = json.loads((out / "manifest.json").read_text())["files"]
    assert entry["skipped"] == {
        "empty text": 1, "half a character": 1, "no text in 'text'": 1, "not JSON": 1, "not a JSON object": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.parquet", "x.warc.wet.gz", "x.tar.gz"])
@pytest.mark.parametrize("part", [0.5, 0.99])
def test_a_file_that_ends_early_is_an_error_that_names_it(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, part: float
) -> None:
    documents = [str(random.Random(i).random()) for i in range(4000)]
    whole = {
        "x.jsonl.gz": lambda: gzip.compress(jsonl(documents)),
        "x.jsonl.zst": lambda: zstandard.compress(jsonl(documents)),
        "x.parquet": lambda: parquet(documents),
        "x.warc.wet.gz": lambda: wet(documents[:300]),
        "x.tar.gz": lambda: archive({f"{i}.txt": text.encode() for i, text in enumerate(documents[:300])}),
    }[name]()
    url = server.put(f"/{name}", whole[: int(len(whole) * part)])
    out = tmp_path / "out"
    assert flame(["data", "download", "mine", registry(tmp_path, mine=f"files.train = ['{url}']"), f"--out={out}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("flame: error: 1 of 1 files are missing") and name in error
    assert list(contents(out)) == ["manifest.json"]


def test_a_plain_wet_file_that_ends_early_is_noticed(tmp_path: Path) -> None:
    whole = gzip.decompress(wet(texts(20)))
    path, corpus, skipped = tmp_path / "x.warc.wet", Corpus("mine"), Counter()
    path.write_bytes(whole)
    assert [document.text for document in read_documents(path, corpus, skipped)] == texts(20)
    for size in (len(whole) - 100, whole.rindex(b"Content-Length") - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedFile, match="x.warc.wet"):
            list(read_documents(path, corpus, skipped))


def test_damage_inside_a_parquet_file_is_never_taken_for_a_full_disk(tmp_path: Path) -> None:
    drawn, path, corpus = random.Random(1), tmp_path / "x.parquet", Corpus("mine", text_column="body")
    numbers = [str(drawn.random()) * 20 for _ in range(2000)]
    pq.write_table(pa.table({"body": numbers}), path, compression="zstd", use_dictionary=False)
    whole, seen = path.read_bytes(), 0
    for _ in range(40):
        place = drawn.randrange(10, len(whole) - 2000)
        path.write_bytes(whole[:place] + drawn.randbytes(40) + whole[place + 40 :])
        try:
            write_parquet(path, tmp_path / "out", corpus, lambda: None)
        except DamagedFile:  # and no other error
            seen += 1
    assert seen > 5


def test_a_file_without_one_usable_record_is_missing_and_the_others_come(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = json.dumps([{"text": "one"}, {"text": "two"}], indent=1).encode()
    urls = [server.put("/array.json", array), server.put("/good.json", jsonl(["three"]))]
    table = registry(tmp_path, mine=f"files.train = {urls}")
    assert flame(["data", "download", "mine", table, f"--out={tmp_path}/out"]) == 2
    said = capsys.readouterr().err
    assert "array.json holds no text that can be used (" in said and "JSON is read as one object per line" in said
    assert os.listdir(tmp_path / "out/train") == ["good.parquet"]


def test_an_archive_that_was_not_unpacked_to_its_end_is_fetched_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, url = tmp_path / "out", server.put("/x.tar.gz", archive({"a": b"old", "b": b"old"}))
    command = ["data", "download", "mine", registry(tmp_path, mine=f"files.train = ['{url}']"), f"--out={out}"]
    assert flame(command) == 0
    (out / "train/x/b").unlink()
    server.put("/x.tar.gz", archive({"a": b"new", "b": b"new"}))

    def killed(draft: Path, target: Path) -> None:
        if target.name == "x":
            raise KeyboardInterrupt
        move(draft, target)

    with monkeypatch.context() as patch:
        patch.setattr("flame.data.download.folder.move", killed)
        with pytest.raises(KeyboardInterrupt):
            command_line(command[2:])
    assert not (out / "train/x").exists()  # what is half new does not pass for either
    assert flame(command) == 0
    assert contents(out / "train") == {"x/a": b"new", "x/b": b"new"} and ".incoming" not in os.listdir(out)


def test_a_name_that_is_too_long_is_no_full_disk(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [server.put("/x.tar.gz", archive({"a" * 300: b"sound"})), server.put("/y.tar.gz", archive({"a": b"sound"}))]
    table = registry(tmp_path, mine=f"files.train = {urls}")
    assert flame(["data", "download", "mine", table, f"--out={tmp_path}/out"]) == 2
    said = capsys.readouterr().err
    assert "File name too long" in said and "make room" not in said
    assert contents(tmp_path / "out/train") == {"y/a": b"sound"}


def test_an_archive_compressed_by_zstd_is_unpacked(server: Server, tmp_path: Path) -> None:
    whole = zstandard.compress(gzip.decompress(archive({"a": b"sound"})))
    table = registry(tmp_path, mine=f"files.train = ['{server.put('/x.tar.zst', whole)}']")
    assert flame(["data", "download", "mine", table, f"--out={tmp_path}/out"]) == 0
    assert contents(tmp_path / "out/train") == {"x/a": b"sound"}


def test_a_python_that_cannot_unpack_safely_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("tarfile.data_filter", raising=False)
    table = registry(tmp_path, mine="files.train = ['http://127.0.0.1:9/x.tar']")
    assert flame(["data", "download", "mine", table, f"--out={tmp_path}/out"]) == 2
    assert "use 3.10.12, 3.11.4 or later" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("listed", ["file:///etc/passwd", "/etc/passwd", "s3://bucket/x.json", "http://[::1/x.json"])
def test_a_remote_list_cannot_name_files_of_this_machine(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: str
) -> None:
    table = registry(tmp_path, mine=f"paths.train = '{server.put('/paths', listed.encode())}'")
    assert flame(["data", "download", "mine", table, f"--out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert listed in error and len(error.strip().splitlines()) == 1


def test_an_archive_is_unpacked_and_cannot_leave_its_folder(server: Server, tmp_path: Path) -> None:
    good = server.put("/speech.tar.gz", archive({"LibriSpeech/1/a.flac": b"sound", "LibriSpeech/1/a.txt": b"word"}))
    evil = server.put("/evil.tar.gz", archive({"../../evil": b"!"}))
    out = tmp_path / "out"
    flame(["data", "download", "mine", registry(tmp_path, mine=f"files.train = ['{good}', '{evil}']"), f"--out={out}"])
    assert set(contents(out)) == {
        "manifest.json",
        "train/speech/LibriSpeech/1/a.flac",
        "train/speech/LibriSpeech/1/a.txt",
    }
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["x.jsonl.zst", "x.tar.gz"])
def test_a_disk_that_fills_up_during_conversion_leaves_nothing_half_done(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    numbers = [str(random.Random(i).random()) * 20 for i in range(1000)]
    whole = zstandard.compress(jsonl(numbers), 19) if name == "x.jsonl.zst" else archive({"zeros": bytes(1_000_000)})
    table = registry(tmp_path, mine=f"files.train = ['{server.put(f'/{name}', whole)}']")
    command = ["data", "download", "mine", table, f"--out={tmp_path}/out"]
    with limited_file_size(len(whole) + 1000):
        assert flame(command) == 2
    assert "cannot write" in (error := capsys.readouterr().err) and "the same command goes on" in error
    assert not (tmp_path / "out/train").exists()
    server.requests.clear()
    assert flame(command) == 0
    assert server.requests == []  # it had arrived
    assert os.listdir(tmp_path / "out/train") == (["x.parquet"] if name == "x.jsonl.zst" else ["x"])


def test_a_second_run_fetches_nothing_and_a_lost_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    urls = [server.put(f"/{i}.jsonl.gz", gzip.compress(jsonl(texts(20, i)))) for i in range(3)]
    command = ["data", "download", "mine", registry(tmp_path, mine=f"files.train = {urls}"), f"--out={tmp_path}/out"]
    flame(command)
    before = contents(tmp_path / "out")
    server.requests.clear()
    flame(command)
    assert server.requests == []
    (tmp_path / "out/train/1.parquet").unlink()
    (tmp_path / "out/train/2.parquet").write_bytes(b"half")
    flame(command)
    assert sorted(path for path, _ in server.requests) == ["/1.jsonl.gz", "/2.jsonl.gz"]
    assert contents(tmp_path / "out") == before


def test_one_missing_file_does_not_keep_others_from_coming(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [server.put(f"/{i}.jsonl", jsonl(texts(5, i))) for i in range(4)]
    del server.files["/2.jsonl"]
    table = registry(tmp_path, mine=f"files.train = {urls}")
    assert flame(["data", "download", "mine", table, f"--out={tmp_path}/out"]) == 2
    assert "1 of 4 files are missing" in (error := capsys.readouterr().err) and "404" in error
    assert len(os.listdir(tmp_path / "out/train")) == 3
    assert "404" in json.loads((tmp_path / "out/manifest.json").read_text())["missing"][0]


def test_shards_and_bytes_choose_files_in_the_order_of_their_numbers(server: Server, tmp_path: Path) -> None:
    for i in range(12):
        server.put(f"/s{i}.jsonl", jsonl(["x" * 1000]))
    size = len(server.files["/s0.jsonl"])
    table = registry(tmp_path, mine=f"files.train = ['{server.url}/s{{0..11}}.jsonl']")

    def chosen(*options: str) -> list[str]:
        server.requests.clear()
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert flame(["data", "download", "mine", table, f"--out={out}", *options]) == 0
        return sorted(os.listdir(out / "train"), key=lambda name: int(name[1:-8]))

    assert chosen("--shards=2") == ["s0.parquet", "s1.parquet"]
    assert chosen("--shards", "9-10") == ["s9.parquet", "s10.parquet"]
    assert chosen(f"--max-bytes={3 * size + size // 2}") == ["s0.parquet", "s1.parquet", "s2.parquet"]
    assert flame(["data", "download", "mine", table, "--max-bytes=10", f"--out={tmp_path}/none"]) == 2
    assert flame(["data", "download", "mine", table, "--shards=12-13", f"--out={tmp_path}/none"]) == 2
    assert not (tmp_path / "none").exists()


def test_a_list_of_paths_is_read_as_common_crawl_has_them(server: Server, tmp_path: Path) -> None:
    documents = texts(10)
    server.put("/crawl/seg/1/wet/A-00000.warc.wet.gz", wet(documents))
    listed = server.put("/crawl/S-2024/wet.paths.gz", gzip.compress(b"seg/1/wet/A-00000.warc.wet.gz\n"))
    table = f"subset = 'S-2024'\npaths.train = '{listed.replace('S-2024', '{subset}')}'\nbase = '{server.url}/crawl/'"
    assert flame(["data", "download", "cc", registry(tmp_path, cc=table), f"--out={tmp_path}/out"]) == 0
    table = pq.read_table(tmp_path / "out/train/A-00000.parquet")
    assert table.column("text").to_pylist() == documents
    assert json.loads(table.column("meta")[3].as_py())["url"] == "http://x/3"


def test_the_hub_is_listed_and_its_checksums_hold(server: Server, tmp_path: Path) -> None:
    files = {f"data/en/train-{i}.parquet": parquet(texts(10, i)) for i in range(2)}
    server.put_dataset("org/corpus", {**files, "data/en/last.parquet": parquet(["held out"]), "README.md": b"#"})
    path = f"/datasets/org/corpus/resolve/{'0123456789abcdef' * 2}01234567/data/en/train-1.parquet"
    server.faults[path] = Faults(wrong_bytes=1, cut_after=700, cuts=3)
    assert path in server.files
    table = "repo = 'org/corpus'\nsubset = 'en'\nfiles.train = ['data/{subset}/*.parquet']\n"
    table += "files.validation = ['data/{subset}/last.parquet']"
    command = ["data", "download", "mine", registry(tmp_path, mine=table), f"--out={tmp_path}/out"]
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    done = run([*command, "--split=train,validation"], environment)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out/train") == {
        name.removeprefix("data/en/"): content for name, content in files.items()
    }
    assert read(tmp_path / "out/validation/last.parquet") == ["held out"]
    unreachable = run(["data", "download", "tinystories"], {**environment, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert unreachable.returncode == 2
    assert unreachable.stderr.startswith("flame: error: the hub (http://127.0.0.1:9) cannot be reached")
    assert len(unreachable.stderr.strip().splitlines()) == 1


def run(command: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "flame.cli", *command]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


def kill_until_done(server: Server, command: list[str], kills: int, drawn: random.Random) -> int:
    """Runs a download, killed at most ``kills`` times at random moments of its work; returns how often it was."""
    killed = 0
    while True:
        server.requests.clear()
        process = subprocess.Popen([sys.executable, "-m", "flame.cli", *command], stderr=subprocess.PIPE)
        if killed < kills:
            while not server.requests and process.poll() is None:
                time.sleep(0.005)
            time.sleep(drawn.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=120)
        if process.returncode == 0:
            return killed
        killed += process.returncode == -signal.SIGKILL
        assert process.returncode == -signal.SIGKILL, said


def kill_at_random(server: Server, tmp_path: Path, kills: int) -> None:
    documents = texts(3000)
    names = {
        **{f"{i}.jsonl.gz": gzip.compress(jsonl(documents[i::4]), 1) for i in range(4)},
        "a.parquet": parquet(documents[:1500]),
        "b.tar.gz": archive({f"{i}.txt": text.encode() for i, text in enumerate(documents[:500])}),
    }
    urls = [server.put(f"/{name}", content) for name, content in names.items()]
    table = registry(tmp_path, mine=f"files.train = {urls}")
    assert flame(["data", "download", "mine", table, f"--out={tmp_path}/whole"]) == 0
    drawn, wanted = random.Random(kills), contents(tmp_path / "whole")
    for name in names:
        server.faults[f"/{name}"] = Faults(slow=0.02, cut_after=100_000)
    while kills:  # a download that is done before it was killed often enough is followed by another one
        folder = tmp_path / f"killed{kills}"
        kills -= kill_until_done(server, ["data", "download", "mine", table, f"--out={folder}"], kills, drawn)
        assert contents(folder) == wanted


def test_a_download_that_is_killed_at_random_ends_as_an_undisturbed_one(server: Server, tmp_path: Path) -> None:
    kill_at_random(server, tmp_path, kills=2)


@pytest.mark.slow
def test_a_download_that_is_killed_twenty_times_ends_as_an_undisturbed_one(server: Server, tmp_path: Path) -> None:
    kill_at_random(server, tmp_path, kills=20)


@pytest.mark.parametrize(
    "words, said",
    [
        (["tinystory"], "no corpus 'tinystory'. Did you mean 'tinystories'?"),
        ([], "name a corpus"),
        (["tinystories", "--split=tset"], "--split 'tset': 'tinystories' has train, validation."),
        (["tinystories", "--subset=en"], "has no subsets"),
        (["tinystories", "--max-bytes=lots"], "--max-bytes 'lots' is not a size"),
        (["tinystories", "--shards=5-2"], "--shards '5-2' chooses no file"),
        (["tinystories", "--workers=0"], "--workers 0 must be at least 1"),
        (["tinystories", "--registry=nowhere.toml"], "cannot read nowhere.toml"),
        (["tinystories", "--worker=3", "--colour=red"], "unrecognized arguments: --colour=red"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert flame(["data", "download", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "table, said",
    [
        ("file.train = ['x']", "unknown key 'file'. Did you mean 'files'?"),
        ("title = 'nothing to fetch'", "needs either files.SPLIT or paths.SPLIT"),
        ("files.train = 'http://x/a.txt'", "files is not a table of lists of text"),
        ("files.train = ['http://x/a.bin']", "'a.bin': no known kind of file"),
        ("files.train = ['http://x/a.txt']", "need a separator"),
        ("files.train = ['http://x/a.json', 'http://y/a.json']", "would both be"),
        ("files.train = ['http://x/a.jsonl', 'http://x/a.jsonl.gz']", "would both be"),
        ("files.train = ['http://x/..']", "is no place for a file"),
        (f"files.train = ['http://x/{'a' * 300}.json']", "a name of more than 240 bytes"),
        ("files.train = ['http://[::1/a.json']", "'http://[::1/a.json' is no address"),
        ("files.train = ['http://x:port/a.json']", "is no address"),
        ("files.train = ['htpp://x/a.json']", "'htpp' is none of http, https"),
        ("files.train = ['http://x/a{9..5}.json']", "counts down: write {5..9}"),
        ("files.'../x' = ['http://x/a.json']", "cannot name a folder"),
        ("files.train = ['http://x/a.json']\nchecksums.'a.json' = 'crc:1'", "is not 'sha256:...' or 'md5:...'"),
    ],
)
def test_a_wrong_registry_is_one_line(
    table: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flame(["data", "download", "mine", registry(tmp_path, mine=table), f"--out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


def test_a_folder_of_another_download_is_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.put("/x.jsonl", jsonl(["a"]))
    table = registry(tmp_path, one=f"files.train = ['{url}']", two=f"files.train = ['{url}']")
    flame(["data", "download", "one", table, f"--out={tmp_path}/out"])
    assert flame(["data", "download", "two", table, f"--out={tmp_path}/out"]) == 2
    assert "holds a download with corpus = 'one', not 'two'" in capsys.readouterr().err
    (tmp_path / "out/manifest.json").write_text("{")
    assert flame(["data", "download", "one", table, f"--out={tmp_path}/out"]) == 2
    assert "manifest.json is damaged" in capsys.readouterr().err


def test_the_registry_that_ships_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert flame(["data", "download", "--list"]) == 0
    said = capsys.readouterr().out
    for name in ("fineweb-edu", "dclm", "slimpajama", "pile", "wikipedia", "common-crawl", "openwebtext", "c4"):
        assert f"\n{name} " in f"\n{said}"
    for name in ("tinystories", "climbmix", "librispeech", "speech-commands"):
        assert f"\n{name} " in said
