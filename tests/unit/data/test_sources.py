"""Every kind of source gives its documents in any order, and says what is wrong with it."""

import gzip
import json
import pickle
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from data_stand_ins import Source
from datasets import config as datasets_config

from flame.data.sources import tables as tables_module
from flame.data.sources.line_index import line_offsets
from flame.data.sources.open import open_source
from flame.data.sources.records import BadRow, cut_text
from flame.errors import DataError

TEXTS = ["first", "zweiter Text: \u00e4\u00f6\u00fc \U0001f600", "third\nwith lines"]
JSONL = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets_cache")))


def open_(path, columns=("text",), limit=1 << 20, **fields):
    return open_source(Source(str(path), **fields), columns, limit)


def texts(source, indices):
    return [record["text"] if isinstance(record, dict) else record.reason for record in source.read(indices)]


def write_parquet(path, columns):
    pq.write_table(pa.table(columns), path)
    return path


def write_jsonl(folder):
    (folder / "a.jsonl").write_bytes(JSONL)
    return folder / "a.jsonl"


def write_gzip(folder):
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(JSONL))
    return folder / "a.jsonl.gz"


def write_zstd(folder):
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(JSONL))
    return folder / "a.jsonl.zst"


def write_text_folder(folder):
    for name, text in zip("abc", TEXTS, strict=True):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def write_parquet_folder(folder):
    write_parquet(folder / "0.parquet", {"id": [0, 1], "text": TEXTS[:2]})
    write_parquet(folder / "1.parquet", {"id": [2], "text": TEXTS[2:]})
    return folder / "*.parquet"


def write_saved_dataset(folder):
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "saved")
    return folder / "saved"


def write_saved_splits(folder):
    train = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.DatasetDict({"train": train, "test": train}).save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize(
    "write",
    [
        write_jsonl,
        write_gzip,
        write_zstd,
        write_text_folder,
        write_parquet_folder,
        write_saved_dataset,
        write_saved_splits,
    ],
)
def test_documents_come_in_any_order_also_in_another_process(tmp_path, write):
    source = open_(write(tmp_path))
    for opened in (source, pickle.loads(pickle.dumps(source))):
        assert len(opened) == 3
        assert texts(opened, [2, 0, 1, 0]) == [TEXTS[i] for i in (2, 0, 1, 0)]


def test_a_folder_may_hold_files_in_folders_and_names_may_be_given(tmp_path):
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "deep")
    assert len(open_(tmp_path)) == 3
    assert len(open_(tmp_path, data_dir="deep", data_files=["*.jsonl"])) == 3
    assert len(open_("json", data_files=[str(tmp_path / "deep/a.jsonl")])) == 3


def test_lines_of_text_can_be_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\n\ntwo\n3")
    source = open_(tmp_path / "a.txt", format="lines")
    assert texts(source, range(len(source))) == ["one", "two", "3"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a", b"a\n", b"\na\n\nb\r\n\r\nc", b"a\nb"])
def test_line_offsets_find_the_lines_that_python_finds(tmp_path, content):
    (tmp_path / "lines").write_bytes(content)
    offsets = line_offsets([content]).tolist()
    lines = [content[a:b].split(b"\n")[0].rstrip(b"\r") for a, b in zip(offsets, offsets[1:], strict=False)]
    assert lines == [line for line in content.splitlines() if line]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_lines_are_found_whatever_the_chunks(size):
    content = b"\r\none\r\n\n\r\r\ntwo\n\n3\r"
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    assert line_offsets(chunks).tolist() == line_offsets([content]).tolist() == [2, 8, 11, 16, 18]


def test_a_lone_text_file_is_cut_into_documents_after_lines(tmp_path):
    content = "".join(f"line {i} \u00e4\n" for i in range(30_000))
    (tmp_path / "corpus.txt").write_text(content, encoding="utf-8")
    source = open_(tmp_path / "corpus.txt")
    parts = texts(source, range(len(source)))
    assert len(parts) > 5 and "".join(parts) == content
    assert all(part.endswith("\n") and len(part.encode()) <= 1 << 16 for part in parts)


def test_the_text_column_goes_by_name_or_by_custom(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"content": ["usual"], "body": ["named"]})
    assert texts(open_(path), [0]) == ["usual"]
    assert texts(open_(path, text_column="body"), [0]) == ["named"]


def test_tasks_that_want_other_columns_get_whole_records(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user"}], "id": 3}\n')
    assert open_(tmp_path / "a.jsonl", columns=None).read([0]) == [{"messages": [{"role": "user"}], "id": 3}]
    with pytest.raises(DataError, match="no column 'messagse'.*Did you mean 'messages'"):
        open_(tmp_path / "a.jsonl", columns=("messagse",))


def test_bad_json_rows_say_where_and_why(tmp_path):
    rows = [b'{"text": "good"}', b"{oops", b'{"text": "\xff"}', b'{"other": 1}', b'{"text": 5}', b'{"text": " "}']
    rows += [b"[1]", rb'{"text": "\ud800"}', b'{"text": "' + b"x" * 20_000 + b'"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    read = open_(tmp_path / "a.jsonl", limit=1000).read(range(9))
    reasons = [row.reason for row in read if isinstance(row, BadRow)]
    assert reasons == [
        "not JSON",
        "invalid UTF-8",
        "missing column",
        "not a string",
        "empty text",
        "not a JSON object",
        "invalid UTF-8",
        "row too large",
    ]
    assert str(read[1]).startswith(f"{tmp_path}/a.jsonl, row 2: not JSON (")


def test_bad_parquet_rows_say_where_and_why(tmp_path):
    offsets = pa.py_buffer(np.array([0, 2, 3, 3], np.int32).tobytes())
    column = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"ok\xff")])
    write_parquet(tmp_path / "0.parquet", {"text": ["a", None]})
    write_parquet(tmp_path / "1.parquet", {"text": column})
    read = open_(tmp_path).read(range(5))
    assert [row["text"] if isinstance(row, dict) else row.reason for row in read] == [
        "a",
        "not a string",
        "ok",
        "invalid UTF-8",
        "empty text",
    ]
    assert str(read[3]).startswith(f"{tmp_path}/1.parquet, row 2: invalid UTF-8")


def test_bad_text_files_are_bad_rows(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "b.txt").write_bytes(b"")
    assert texts(open_(tmp_path), [0, 1]) == ["invalid UTF-8", "empty text"]


def truncated_parquet(folder):
    path = write_parquet(folder / "a.parquet", {"text": ["x" * 1000] * 100})
    path.write_bytes(path.read_bytes()[:-50])
    return path


def damaged_parquet(folder):
    """The footer is whole, the data are not."""
    path = folder / "a.parquet"
    pq.write_table(pa.table({"text": [f"{i} " * 50 for i in range(2000)]}), path)
    data = bytearray(path.read_bytes())
    data[200:4000] = b"\x00" * 3800
    path.write_bytes(data)
    return path


def truncated_gzip(folder):
    path = write_gzip(folder)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def truncated_zstd(folder):
    path = folder / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(JSONL * 1000)[:-9])
    return path


def mixed_folder(folder):
    write_jsonl(folder)
    return write_text_folder(folder)


def unknown_suffix(folder):
    (folder / "a.xyz").write_text("?")
    return folder / "a.xyz"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (truncated_parquet, "a.parquet is not a complete parquet file"),
        (damaged_parquet, "cannot be loaded"),
        (truncated_gzip, "a.jsonl.gz cannot be decompressed"),
        (truncated_zstd, "a.jsonl.zst cannot be decompressed"),
        (mixed_folder, r"several formats \(jsonl, txt\)"),
        (unknown_suffix, "cannot tell the format of .*a.xyz"),
        (lambda folder: folder, "no files that end in .parquet"),
        (lambda folder: folder / "none.jsonl", "no file or folder '.*none.jsonl'"),
        (lambda folder: folder / "*.jsonl", "no files that end in"),
        (lambda folder: write_parquet(folder / "a.parquet", {"txt": ["a"]}), "no column 'text' or 'content', only txt"),
        (lambda folder: write_parquet(folder / "a.parquet", {"text": [1]}), "column 'text' holds int64, not text"),
        (lambda folder: write_parquet(folder / "a.parquet", {"text": pa.array([], pa.string())}), "no documents"),
    ],
)
def test_sources_that_are_wrong_as_a_whole_are_errors_when_opened(tmp_path, write, message):
    path = write(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        open_(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_column": "txet"}, "no column 'txet', only id, text: set text_column. Did you mean 'text'"),
        ({"split": "test"}, "is local and has no split 'test'"),
        ({"format": "jsnol"}, "Did you mean 'jsonl'"),
    ],
)
def test_misspelt_fields_are_errors(tmp_path, fields, message):
    with pytest.raises(DataError, match=message):
        open_(write_jsonl(tmp_path), **fields)


def test_an_unreachable_hub_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(tables_module, "hub_is_reachable", lambda: False)
    with pytest.raises(DataError, match="dataset 'some/dataset' is neither a local path nor .* check the path or"):
        open_("some/dataset")


def test_the_builtin_corpus_has_two_disjoint_splits():
    train, held_out = (open_("builtin:python-stdlib", split=split) for split in ("train", "validation"))
    assert 0.005 < len(held_out) / len(train) < 0.05
    some = texts(train, range(0, len(train), 50))
    assert not set(some) & set(texts(held_out, range(len(held_out))))
    with pytest.raises(DataError, match="Did you mean 'validation'"):
        open_("builtin:python-stdlib", split="validaton")
    with pytest.raises(DataError, match="Did you mean 'python-stdlib'"):
        open_("builtin:python-stlib")


@pytest.mark.parametrize("text", ["short", "word " * 500, "\u6f22" * 900, "a\U0001f600" * 400, "line\n" * 300])
def test_cut_text_keeps_every_character_within_the_limit(text):
    pieces = list(cut_text(text, 100))
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= 100 for piece in pieces)


def test_two_processes_may_index_the_same_file_at_once(tmp_path):
    write_gzip(tmp_path)
    code = (
        "import sys; from pathlib import Path; import numpy as np; "
        "from flame.data.sources.line_index import index_lines; "
        "print(len(np.load(index_lines(Path(sys.argv[1]))[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.jsonl.gz")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == [b"4\n", b"4\n"]
