"""Remote sources: the same documents as from local files, read ahead, within bounds, through an unreliable network."""

import gzip
import io
import json
import pickle
from functools import partialmethod
from itertools import islice
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from data_stand_ins import Data, Source
from remote_files import Faulty, put

from flame.data.shards import TokenizerIdentity, TokenShardWriter, write_manifest
from flame.data.sources.open import open_source
from flame.data.sources.records import BadRow
from flame.data.sources.remote import shape, storage
from flame.errors import ConfigError, DataError

TEXTS = [f"document {number} " + "wörter " * (number % 40) for number in range(600)]
JSONL = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()
IDENTITY = TokenizerIdentity("a" * 32, "own", 500)
DOCUMENTS = [np.arange(number % 60 + 1) for number in range(600)]


@pytest.fixture(autouse=True)
def faultless(monkeypatch):
    monkeypatch.setattr(storage, "_DELAYS", (0.0, 0.0, 0.0))
    Faulty.reset()


@pytest.fixture
def small_pages(monkeypatch):
    """Pages of a KiB, and blocks for any source that does not fit one."""
    monkeypatch.setattr(shape, "PAGE_BYTES", 1 << 10)
    monkeypatch.setattr(shape, "SMALL_SOURCE", 1 << 10)


def open_(path, columns: Any = ("text",), limit: Any = 1 << 20, tokenizer: Any = IDENTITY, **fields) -> Any:
    return open_source(Source(f"faulty://{path}", **fields), columns, limit, tokenizer)


def parquet(columns, rows=100):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=rows)
    return buffer.getvalue()


def put_jsonl(folder):
    half = JSONL.index(b"\n", len(JSONL) // 2) + 1
    put("faulty://c/a.jsonl", JSONL[:half])
    put("faulty://c/b.jsonl", JSONL[half:])


def put_gzip(folder):
    put("faulty://c/a.jsonl.gz", gzip.compress(JSONL))


def put_zstd(folder):
    put("faulty://c/a.jsonl.zst", zstandard.compress(JSONL))


def put_texts(folder):
    for number, text in enumerate(TEXTS[:20]):
        put(f"faulty://c/{number:03}.txt", text.encode())


def put_parquet(folder):
    put("faulty://c/a.parquet", parquet({"id": range(250), "text": TEXTS[:250]}))
    put("faulty://c/b.parquet", parquet({"id": range(350), "text": TEXTS[250:]}))


def put_shards(folder):
    with TokenShardWriter(folder, dtype="uint16", tokenizer=IDENTITY, tokens_per_shard=4000) as writer:
        for document in DOCUMENTS:
            writer.add(document)
        write_manifest(folder, "uint16", IDENTITY, writer.close())
    for path in folder.iterdir():
        put(f"faulty://c/{path.name}", path.read_bytes())


def put_packed(folder):
    put("faulty://c/a.parquet", parquet({"input_ids": pa.array(DOCUMENTS, pa.list_(pa.int32())), "more": TEXTS}))


def fresh(source):
    """The source as a worker process sees it: nothing read yet."""
    return pickle.loads(pickle.dumps(source))


def contents(source, order):
    return [record["input_ids"].tolist() if source.tokenized else record["text"] for record in source.read(order)]


@pytest.mark.parametrize(
    "write", [put_jsonl, put_gzip, put_zstd, put_texts, put_parquet, put_shards, put_packed], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("paged", [False, True])
def test_documents_come_in_any_order(tmp_path, write, paged, request):
    if paged:
        request.getfixturevalue("small_pages")
    write(tmp_path)
    source = open_("c", **({"format": "packed"} if write is put_packed else {}))
    expected = [document.tolist() for document in DOCUMENTS] if source.tokenized else TEXTS
    whole = contents(source, range(len(source)))
    assert whole == expected[: len(source)] or (write is put_parquet and sorted(whole) == sorted(expected))
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    for opened in (source, pickle.loads(pickle.dumps(source))):
        opened.prefetch(order[:100])
        assert contents(opened, order) == [whole[number] for number in order]
        assert opened.read([]) == []
    assert source.block == 1 or paged


def test_a_lone_text_is_cut_where_a_local_one_is(tmp_path, small_pages, monkeypatch):
    monkeypatch.setattr(storage, "_CHUNK", 100_000)
    text = "".join(f"line {number} ä\n" for number in range(30_000)).encode()
    put("faulty://c/a.txt", text)
    (tmp_path / "a.txt").write_bytes(text)
    local = open_source(Source(str(tmp_path / "a.txt")), ("text",), 1 << 20)
    assert contents(open_("c/a.txt"), range(len(local))) == contents(local, range(len(local)))


def test_a_block_of_parquet_is_a_row_group(small_pages):
    put_parquet(None)
    source = open_("c")
    assert (len(source), source.block) == (600, 100)
    for block in range(5):
        Faulty.reads.clear()
        source.read(range(block * 100, block * 100 + 100))
        assert len(Faulty.reads) == 1
    assert source.where(500) == "faulty:///c/a.parquet, row 201"  # the short row groups come last
    assert len({source.where(index) for index in range(600)}) == 600


def test_only_columns_that_are_needed_are_read(small_pages):
    put(
        "faulty://c/a.parquet",
        parquet(
            {
                "text": TEXTS,
                "ballast": np.random.bytes(600_000 // 600 * 0 + 8)
                and [np.random.default_rng(i).bytes(4000) for i in range(600)],
            },
            600,
        ),
    )
    source = open_("c")
    Faulty.reads.clear()
    source.read([0])
    assert sum(size for _, _, size in Faulty.reads) < 100_000
    assert "ballast" in open_("c", columns=None).read([0])[0]


def test_memory_stays_within_its_bounds(small_pages, monkeypatch):
    monkeypatch.setenv("FLAME_READ_AHEAD_MB", "1")
    rows = [{"text": f"{number} " + "x" * 20_000} for number in range(300)]  # 6 MB
    put("faulty://c/a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    source = open_("c")
    source.prefetch(range(300))
    for start in range(0, 300, 10):
        source.read(range(start, start + 10))
        assert source._pages._bytes <= 1 << 20
        assert sum(source._pages._size(page) for page in source._pages._pages) == source._pages._bytes
    monkeypatch.setenv("FLAME_READ_AHEAD_MB", "lots")
    with pytest.raises(ConfigError, match="FLAME_READ_AHEAD_MB = 'lots' must be a whole number"):
        open_("c").read([0])


def test_parts_that_are_read_again_for_want_of_memory_are_told_once(small_pages, monkeypatch, caplog):
    monkeypatch.setenv("FLAME_READ_AHEAD_MB", "1")
    rows = [{"text": f"{number} " + "x" * 300_000} for number in range(6)]
    put("faulty://c/a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    source = open_("c")
    for _ in range(3):
        for number in range(6):
            source.read([number])
    assert caplog.text.count("do not all fit 1 MiB; set FLAME_READ_AHEAD_MB to more") == 1


@pytest.mark.parametrize("write", [put_jsonl, put_parquet, put_shards], ids=lambda function: function.__name__)
def test_the_loader_announces_all_documents_before_it_reads_them(
    make_loader, encoder, tmp_path, small_pages, monkeypatch, write
):
    encoder.fingerprint = IDENTITY.fingerprint
    write(tmp_path)
    kind = type(open_("c"))
    announced, read = set(), []
    real_prefetch = kind.prefetch

    def prefetch(self, indices):
        announced.update(indices)
        real_prefetch(self, indices)

    def note(self, indices, method):
        read.append(set(map(int, indices)) - announced)
        return method(self, indices)

    for name in ("read_tokens", "read"):
        if hasattr(kind, name):
            monkeypatch.setattr(kind, name, partialmethod(note, method=getattr(kind, name)))
            break
    monkeypatch.setattr(kind, "prefetch", prefetch)
    loader = make_loader(Source("faulty://c"), data=Data(lanes_per_row=1), global_batch_size=2, seq_len=600)
    read.clear()  # opening a source looks at its first rows
    list(islice(loader, 20))
    assert len(read) > 5 and not any(read)


@pytest.mark.parametrize("failing", [1, 3])
def test_reads_that_fail_are_tried_again(failing):
    put_jsonl(None)
    Faulty.failing = failing
    source = fresh(open_("c"))
    Faulty.failing = failing
    assert contents(source, [0, 599]) == [TEXTS[0], TEXTS[599]]
    assert Faulty.failing == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionResetError("cut"), r"a.jsonl, bytes 0-\d+ cannot be read after 4 attempts .cut.: check the network"),
        (TimeoutError(), "cannot be read after 4 attempts .TimeoutError."),
        (PermissionError("Access Denied"), "cannot be read .Access Denied.: check the path and your credentials"),
        (FileNotFoundError("a.jsonl"), "a.jsonl is gone"),
    ],
)
def test_reads_that_fail_for_good_are_one_clear_line(error, message):
    put("faulty://c/a.jsonl", JSONL)
    source = fresh(open_("c"))
    Faulty.failing, Faulty.error = 99, error
    for _ in range(2):
        with pytest.raises(DataError, match=message) as caught:
            source.read([0])
        assert "\n" not in str(caught.value)
    Faulty.failing = 0
    assert contents(source, [0]) == TEXTS[:1]


def test_a_server_without_ranges_is_an_error():
    put("faulty://c/a.jsonl", JSONL)
    source = fresh(open_("c"))
    Faulty.short = True
    with pytest.raises(DataError, match="bytes came instead of .* gives no ranges; download it first"):
        source.read([0])


def test_a_file_that_changes_between_epochs_or_runs_is_named(monkeypatch, caplog):
    put("faulty://c/a.jsonl", JSONL)
    source = open_("c")
    source.read([0])
    put("faulty://c/a.jsonl", JSONL + b'{"text": "new"}\n')
    monkeypatch.setattr(storage, "_CHECK_EVERY", 0.0)
    source._pages._pages.clear()
    with pytest.raises(DataError, match="a.jsonl changed .* keep the files of a run as they are"):
        source.read([0])
    assert not caplog.records
    assert len(open_("c")) == 601
    assert "a.jsonl changed since the source was last read: a run that is resumed sees other documents" in caplog.text


def test_bad_rows_say_where_and_why(small_pages):
    rows = [b'{"text": "good"}', b"{oops", b'{"text": "\xff"}', b'{"text": "' + b"x" * 20_000 + b'"}', b'{"text": "b"}']
    put("faulty://c/a.jsonl", b"\n".join(rows))
    read = open_("c", limit=1000).read(range(5))
    assert [row.reason if isinstance(row, BadRow) else row["text"] for row in read] == [
        *("good", "not JSON", "invalid UTF-8", "row too large", "b")
    ]
    assert read[1].where == "faulty:///c/a.jsonl, row 2"
    assert sum(size for _, _, size in Faulty.reads) < 3 * 20_000  # the long line is indexed, never read again


def damaged_group(folder):
    data = bytearray(parquet({"text": [f"{i} " * 50 for i in range(2000)]}))
    data[200:4000] = bytes(3800)
    put("faulty://c/a.parquet", bytes(data))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (damaged_group, r"a.parquet, row group \d+ (is damaged|holds)"),
        (lambda _: put("faulty://c/a.parquet", parquet({"text": TEXTS})[:-50]), "a.parquet is not a complete parquet"),
        (lambda _: put("faulty://c/a.parquet", b"PAR1"), "a.parquet is not a complete parquet"),
        (lambda _: put("faulty://c/a.parquet", b""), "a.parquet is not a complete parquet"),
        (lambda _: put("faulty://c/a.parquet", parquet({"text": [1]})), "column 'text' holds int64, not text"),
        (lambda _: put("faulty://c/a.parquet", parquet({"txt": ["a"]})), "no column 'text' or 'content', only txt"),
        (lambda _: put("faulty://c/a.jsonl.gz", gzip.compress(JSONL)[:-20]), "a.jsonl.gz cannot be decompressed"),
        (lambda _: put("faulty://c/a.jsonl", b""), "holds no documents"),
        (lambda _: None, "no file or folder 'faulty://c'"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_file(write, message):
    write(None)
    with pytest.raises(DataError, match=message) as caught:
        source = open_("c")
        source.read(range(len(source)))
    assert "\n" not in str(caught.value)


def hub_of(monkeypatch, **splits):
    """Stands for the hub: a dataset with these files."""
    builder = SimpleNamespace(config=SimpleNamespace(data_files=splits))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)


def test_a_parquet_dataset_of_the_hub_is_streamed_row_group_by_row_group(monkeypatch):
    put_parquet(None)
    hub_of(monkeypatch, train=["faulty://c/b.parquet", "faulty://c/a.parquet"], test=["faulty://c/a.parquet"])
    source = open_source(Source("some/dataset", streaming=True), ("text",), 1 << 20)
    assert sorted(contents(source, range(600))) == sorted(TEXTS)
    assert source.where(0) == "faulty://c/b.parquet, row 1"
    with pytest.raises(DataError, match="has no split 'validation': it is one of train, test"):
        open_source(Source("some/dataset", streaming=True, split="validation"), ("text",), 1 << 20)


def test_other_datasets_of_the_hub_are_not_streamed(monkeypatch):
    hub_of(monkeypatch, train=["faulty://c/a.json.gz"])
    with pytest.raises(DataError, match="does not consist of parquet files.*set streaming = false"):
        open_source(Source("some/dataset", streaming=True), ("text",), 1 << 20)
    hub_of(monkeypatch)
    with pytest.raises(DataError, match="does not consist of parquet files.*set streaming = false"):
        open_source(Source("some/dataset", streaming=True), ("text",), 1 << 20)


@pytest.mark.parametrize("url", ["nowhere://bucket/a.jsonl", "http://127.0.0.1:9/a.jsonl"])
def test_what_cannot_be_reached_is_one_clear_line(url):
    with pytest.raises(DataError, match="cannot be (opened|read)") as caught:
        open_source(Source(url), ("text",), 1 << 20)
    assert "\n" not in str(caught.value)
