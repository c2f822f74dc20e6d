"""Every format is read, and every kind of damage is named or counted."""

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datatrove.data import Document
from prepare_stand_ins import job_of
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from flame.data.prepare.reading.plan import make_plan
from flame.data.prepare.reading.reader import InputReader
from flame.data.prepare.reading.rows import MARKUP
from flame.data.prepare.reading.text import decode_page
from flame.data.prepare.reporting.tally import Counting
from flame.errors import ConfigError, DataError, FlameError

TEXTS = ["The first text.", "Der zweite, mit Umlaut: ä.", "第三个文本。", "The fourth\nhas two lines."]


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def parquet(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"number": range(len(texts)), "text": texts}), sink, row_group_size=2)
    return sink.getvalue()


def archive(texts: list[str], kind: str = "conversion", zipped: bool = False) -> bytes:
    sink = io.BytesIO()
    writer = WARCWriter(sink, gzip=zipped)
    for number, text in enumerate(texts):
        payload, headers, content_type = io.BytesIO(text.encode()), None, "text/plain"
        if kind == "response":
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.0")
            content_type = ""
        record = writer.create_warc_record(
            f"http://example.org/{number}", kind, payload, warc_content_type=content_type, http_headers=headers
        )
        writer.write_record(record)
    return sink.getvalue()


def read(folder: Path, **settings: Any) -> tuple[list[Document], dict[str, Any]]:
    """Reads all of a folder with the first step alone; returns the documents and the notes."""
    options = {key: value for key, value in settings.items() if key.startswith("read")}
    given = {key: value for key, value in settings.items() if not key.startswith("read")}
    job = job_of(
        {"inputs": [{"path": str(folder), "name": "x", **given}], "output.folder": folder.parent / "out", **options}
    )
    plan = make_plan(job.inputs, job.executor.task_bytes)
    plan.save(folder.parent / "plan")
    notes = folder.parent / "notes"
    documents = list(InputReader(Counting("read", notes), folder.parent / "plan", job.inputs, job.read).run())
    return documents, json.loads((notes / "00000.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made


WHOLE: dict[str, Callable[[], bytes]] = {
    "a.jsonl": lambda: jsonl(TEXTS),
    "a.jsonl.gz": lambda: gzip.compress(jsonl(TEXTS)),
    "a.jsonl.zst": lambda: zstandard.compress(jsonl(TEXTS)),
    "a.parquet": lambda: parquet(TEXTS),
    "a.warc.wet": lambda: archive(TEXTS),
    "a.warc.wet.gz": lambda: archive(TEXTS, zipped=True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_format_is_read(name: str, folder: Path) -> None:
    (folder / name).write_bytes(WHOLE[name]())
    documents, notes = read(folder)
    assert [document.text for document in documents] == TEXTS
    assert len({document.id for document in documents}) == len(TEXTS)
    assert documents[0].metadata["source"] == "x" and notes["kept"]["x"][0] == len(TEXTS)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_text_is_read_whole_or_by_lines(suffix: str, folder: Path) -> None:
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix](b"one\n\ntwo\n")
    (folder / f"a.txt{suffix}").write_bytes(packed)
    assert [document.text for document in read(folder)[0]] == ["one\n\ntwo\n"]
    assert [document.text for document in read(folder, format="lines")[0]] == ["one", "two"]


def test_several_frames_and_members_are_read_to_the_end(folder: Path) -> None:
    halves = jsonl(TEXTS[:2]), jsonl(TEXTS[2:])
    (folder / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, halves)))
    (folder / "b.jsonl.zst").write_bytes(b"".join(map(zstandard.compress, halves)))
    assert [document.text for document in read(folder)[0]] == TEXTS * 2


def test_pages_are_found_in_archives_and_alone(folder: Path) -> None:
    page = "<html><body><p>Grüße</p></body></html>"
    (folder / "a.warc.gz").write_bytes(archive([page], "response", zipped=True))
    (folder / "b.html").write_bytes(b'<meta charset="iso-8859-1"><p>Gr\xfc\xdfe</p>')
    first, second = read(folder)[0]
    assert first.text == page and first.metadata[MARKUP] and first.metadata["url"] == "http://example.org/0"
    assert "Grüße" in second.text and second.metadata[MARKUP]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_file_is_an_error_or_counted_never_silence(name: str, seed: int, folder: Path) -> None:
    texts = [f"Text number {number} of many, {random.Random(number).random()}." for number in range(60)]
    kind = name.removeprefix("a")
    whole = {
        ".jsonl": lambda: jsonl(texts),
        ".jsonl.gz": lambda: gzip.compress(jsonl(texts)),
        ".jsonl.zst": lambda: zstandard.compress(jsonl(texts)),
        ".parquet": lambda: parquet(texts),
        ".warc.wet": lambda: archive(texts),
        ".warc.wet.gz": lambda: archive(texts, zipped=True),
    }[kind]()
    cut = random.Random(f"{name}{seed}").randrange(len(whole) // 3, len(whole) - 9)
    while whole[cut - 1 : cut] in (b"}", b"\n"):  # a plain file that ends with a whole row looks whole
        cut -= 1
    (folder / name).write_bytes(whole[:cut])
    settings = {"read.on_bad_file": "skip", "read.on_bad_row": "skip"}
    documents, notes = read(folder, **settings)
    assert [document.text for document in documents] == texts[: len(documents)]
    assert len(documents) < len(texts)
    assert sum(count[0] for reason in notes["dropped"].values() for count in reason.values()) >= 1, cut
    with pytest.raises(FlameError, match=rf"{name}.*(damaged|cut off|row|record|byte)"):
        read(folder, **{"read.on_bad_file": "error", "read.on_bad_row": "error"})


@pytest.mark.parametrize("name", WHOLE)
def test_a_corrupted_file_never_escapes_as_anything_but_an_error_of_ours(name: str, folder: Path) -> None:
    whole = bytearray(WHOLE[name]())
    drawn = random.Random(name)
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(drawn.randint(1, 4)):
            damaged[drawn.randrange(len(damaged))] ^= 1 << drawn.randrange(8)
        (folder / name).write_bytes(damaged)
        for policy in ("skip", "error"):
            try:
                read(folder, **{"read.on_bad_file": policy, "read.on_bad_row": policy})
            except FlameError as error:
                assert name in str(error)


def test_bad_rows_are_counted_by_reason_with_examples(folder: Path) -> None:
    rows = ['{"text": "good"}', "not json", '{"text": 3}', '{"other": 1}', '["list"]', '{"text": "\\ud800"}', "\xff"]
    (folder / "a.jsonl").write_bytes(b"\n".join(row.encode("latin-1") for row in rows))
    documents, notes = read(folder)
    assert [document.text for document in documents] == ["good"]
    counts = {reason: count["x"][0] for reason, count in notes["dropped"].items()}
    assert counts == {
        "not JSON": 1,
        "not a string": 1,
        "no text column": 1,
        "not a JSON object": 1,
        "invalid UTF-8": 2,
    }
    assert "row 2" in notes["examples"]["not JSON"][0]["detail"]
    with pytest.raises(DataError, match=r"a\.jsonl, row 2: not JSON .*read\.on_bad_row"):
        read(folder, **{"read.on_bad_row": "error"})


def test_a_wrong_column_is_named_rather_than_skipped(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": 1}\n{"text": 2}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: no row has text; row 2: not a string, 'text' is int"):
        read(folder)
    (folder / "a.jsonl").unlink()
    pq.write_table(pa.table({"text": [1, 2]}), folder / "a.parquet")
    with pytest.raises(DataError, match=r"column 'text' holds int64, not text"):
        read(folder)
    with pytest.raises(DataError, match=r"no column 'body' among text"):
        read(folder, text_column="body")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.warc.wet", "a.txt"])
def test_a_document_beyond_the_limit_is_skipped_cut_or_an_error(name: str, folder: Path) -> None:
    texts = ["short", "long " * 600, "last"]
    whole = {
        "a.jsonl": lambda: jsonl(texts),
        "a.jsonl.gz": lambda: gzip.compress(jsonl(texts)),
        "a.parquet": lambda: parquet(texts),
        "a.warc.wet": lambda: archive(texts),
        "a.txt": lambda: texts[1].encode(),
    }[name]()
    (folder / name).write_bytes(whole)
    limit = {"read.max_document_bytes": 1024}
    documents, notes = read(folder, **limit)
    assert [document.text for document in documents] == ([] if name == "a.txt" else ["short", "last"])
    assert notes["dropped"]["too large"]["x"][0] == 1
    documents, notes = read(folder, **limit, **{"read.on_large_document": "cut"})
    assert max(len(document.text) for document in documents) == 1024 and not notes["dropped"]
    with pytest.raises(DataError, match=r"too large .*read\.on_large_document"):
        read(folder, **limit, **{"read.on_large_document": "error"})


def test_an_endless_line_costs_no_memory(folder: Path) -> None:
    import tracemalloc

    with gzip.open(folder / "a.jsonl.gz", "wb") as file:
        file.write(b'{"text": "')
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    documents, notes = read(folder, **{"read.max_document_bytes": 1 << 20})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [document.text for document in documents] == ["after"] and notes["dropped"]["too large"]
    assert peak < 32 << 20, peak


def test_a_file_that_changes_after_planning_is_named(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(jsonl(TEXTS))
    job = job_of({"inputs": [{"path": str(folder)}], "output.folder": folder.parent / "out"})
    make_plan(job.inputs, 1).save(folder.parent / "plan")
    (folder / "a.jsonl").write_bytes(jsonl(TEXTS[:2]))
    reader = InputReader(Counting("read", folder.parent / "notes"), folder.parent / "plan", job.inputs, job.read)
    with pytest.raises(DataError, match="has changed since this preparation began"):
        list(reader.run())


def test_files_are_shared_out_whole_and_in_order(folder: Path) -> None:
    for number in range(10):
        (folder / f"{number}.txt").write_text("x" * 100)
    (folder / "skipped.md").write_text("x")
    inputs = job_of(
        {"inputs": [{"path": str(folder), "exclude": ["*.md"]}], "output.folder": folder.parent / "out"}
    ).inputs
    for task_bytes, tasks in ((1, 10), (250, 5), (10_000, 1)):
        plan = make_plan(inputs, task_bytes)
        assert plan.tasks == tasks and [file.name for file in plan.files] == [f"{number}.txt" for number in range(10)]


def test_exclude_matches_below_the_folder_of_an_input_alone(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "in"
    for name in ("a.txt", "tests/b.txt", "deep/tests/c.txt", "deep/d.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for path in (folder, f"{folder}/**/*.txt"):
        for pattern in ("tests/*", "**/tests/*", f"{folder}/*tests/*"):
            inputs = job_of({"inputs": [{"path": path, "exclude": [pattern]}], "output.folder": tmp_path / "o"}).inputs
            assert [file.name for file in make_plan(inputs, 1).files] == ["a.txt", "deep/d.txt"], (path, pattern)


@pytest.mark.parametrize("name", ["source", "language", "score", "markup"])
def test_a_column_named_as_our_own_is_refused_to_carry_and_no_harm_in_a_file(name: str, folder: Path) -> None:
    row = {"text": "Plain <b>text</b>.", name: ["unhashable"], "page": 3}
    (folder / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=rf"inputs\.columns names '{name}'.*leave it out"):
        read(folder, columns=["page", name])
    [document], notes = read(folder, columns=["page"])
    assert document.metadata == {"source": "x", "page": 3} and notes["kept"]["x"][0] == 1


@pytest.mark.parametrize("charset", ["undefined", "utf\0-8", "no such", "rot13", "idna"])
def test_a_page_that_declares_nonsense_is_read_all_the_same(charset: str) -> None:
    assert decode_page(b"Gr\xfc\xdfe", charset) == "Grüße"
    assert "Grüße" in decode_page(f'<meta charset="{charset}">'.encode() + b"Gr\xfc\xdfe")


def test_an_input_without_files_is_refused_unless_it_is_optional(folder: Path) -> None:
    settings = {"inputs": [{"path": f"{folder}/*.txt"}], "output.folder": folder.parent / "out"}
    with pytest.raises(DataError, match=r"inputs\.0\.path .* has no files"):
        make_plan(job_of(settings).inputs, 1)
    settings["inputs"][0]["optional"] = True
    assert make_plan(job_of(settings).inputs, 1).files == []


def test_a_remote_file_is_read_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a.jsonl.gz", gzip.compress(jsonl(TEXTS)))
    memory.pipe("/corpus/b.parquet", parquet(TEXTS))
    job = job_of({"inputs": [{"path": "memory://corpus", "name": "x"}], "output.folder": tmp_path / "out"})
    make_plan(job.inputs, 1 << 20).save(tmp_path / "plan")
    reader = InputReader(Counting("read", tmp_path / "notes"), tmp_path / "plan", job.inputs, job.read)
    assert [document.text for document in reader.run()] == TEXTS * 2
    memory.rm("/corpus", recursive=True)
