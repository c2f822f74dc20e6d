"""Sources of token ids: shards, bare files and packed rows."""

import os
import pickle
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_stand_ins import Source
from datasets import config as datasets_config

from flame.data.shards import TokenizerIdentity, TokenShardWriter, write_manifest
from flame.data.sources.open import open_source
from flame.data.sources.records import BadRow
from flame.data.sources.token_files import cut_offsets
from flame.errors import DataError

OWN = TokenizerIdentity("a" * 32, "own", 500)
OTHER = TokenizerIdentity("b" * 32, "other", 500)
GENERATOR = np.random.default_rng(0)
DOCUMENTS = [GENERATOR.integers(0, 500, size).astype(np.int32) for size in (5, 1, 300, 7, 64, 2, 90)]


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets_cache")))


def shards(folder, tokenizer=OWN, dtype="uint16", documents=DOCUMENTS, size=310):
    folder.mkdir(exist_ok=True)
    with TokenShardWriter(folder, dtype=dtype, tokenizer=tokenizer, tokens_per_shard=size) as writer:
        for document in documents:
            writer.add(document)
        write_manifest(folder, dtype, tokenizer, writer.close())
    return folder


def bare(path, ids, dtype="uint16"):
    np.asarray(ids, dtype).tofile(path)
    return path


def packed(path, rows, kind=None):
    pq.write_table(pa.table({"input_ids": pa.array(rows, kind or pa.list_(pa.int32()))}), path)
    return path


def open_(path, tokenizer=OWN, limit=1 << 20, **fields) -> Any:
    return open_source(Source(str(path), **fields), ("text",), limit, tokenizer)


def assert_holds(source, documents):
    assert source.tokenized and len(source) == len(documents)
    orders = [range(len(documents)), [*reversed(range(len(documents)))], [2, 2, 0], [1]]
    for opened in (source, pickle.loads(pickle.dumps(source))):
        for order in orders:
            for record, number in zip(opened.read(order), order, strict=True):
                assert record["input_ids"].dtype == np.int32
                np.testing.assert_array_equal(record["input_ids"], documents[number])
            if hasattr(opened, "read_tokens"):
                tokens, lengths = opened.read_tokens(np.array(order))
                assert tokens.dtype == np.int32 and lengths.tolist() == [len(documents[number]) for number in order]
                np.testing.assert_array_equal(tokens, np.concatenate([documents[number] for number in order]))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_shards_are_read_in_any_order(tmp_path, dtype):
    source = open_(shards(tmp_path / "out", dtype=dtype))
    assert_holds(source, DOCUMENTS)
    assert source.where(3) == f"{tmp_path}/out/shard_00001.bin, document 1"
    assert len(source.read([])) == 0


def test_some_of_the_shards_may_be_named_and_other_files_lie_beside_them(tmp_path):
    shards(tmp_path / "out")
    (tmp_path / "out" / "report.json").write_text("{}")
    (tmp_path / "out" / "notes.txt").write_text("not for training")
    assert_holds(open_(tmp_path / "out"), DOCUMENTS)
    assert_holds(open_(tmp_path / "out" / "shard_00000.bin"), DOCUMENTS[:3])
    assert_holds(open_(tmp_path, data_dir="out", data_files=["shard_0000[1-9].bin"]), DOCUMENTS[3:])


def test_bare_files_are_one_endless_document(tmp_path):
    ids = GENERATOR.integers(0, 500, 5000)
    pieces = [ids[start : start + 1024] for start in range(0, 5000, 1024)]
    assert_holds(open_(bare(tmp_path / "a.bin", ids), token_dtype="uint16"), pieces)
    bare(tmp_path / "b.bin", ids, "uint32")
    with pytest.raises(DataError, match="a.bin does not say what its tokens are.*set token_dtype"):
        open_(tmp_path / "a.bin")
    assert_holds(open_(tmp_path / "b.bin", token_dtype="uint32"), pieces)


def test_the_header_of_llm_c_is_not_taken_for_tokens(tmp_path):
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 3000
    ids = GENERATOR.integers(0, 500, 3000).astype("<u2")
    (tmp_path / "a.bin").write_bytes(header.tobytes() + ids.tobytes())
    assert_holds(open_(tmp_path / "a.bin"), [ids[:1024], ids[1024:2048], ids[2048:]])
    (tmp_path / "a.bin").write_bytes(header.tobytes() + ids[:2000].tobytes())
    with pytest.raises(DataError, match="a.bin holds 2,000 tokens, its header says 3,000"):
        open_(tmp_path / "a.bin")


def test_packed_rows_are_documents(tmp_path):
    packed(tmp_path / "0.parquet", DOCUMENTS[:3])
    packed(tmp_path / "1.parquet", DOCUMENTS[3:], pa.large_list(pa.int64()))
    (tmp_path / "two").mkdir()
    assert_holds(open_(tmp_path / "0.parquet", format="packed"), DOCUMENTS[:3])
    source = open_(tmp_path / "1.parquet", format="packed")
    assert_holds(source, DOCUMENTS[3:])
    assert source.where(1) == f"{tmp_path}/1.parquet, row 2"
    rows = [row.tolist() * 9 for row in DOCUMENTS[1:2]] * 3
    packed(tmp_path / "two" / "fixed.parquet", rows, pa.list_(pa.int32(), 9))
    assert_holds(open_(tmp_path / "two", format="packed"), rows)


def test_packed_rows_of_a_saved_dataset(tmp_path):
    dataset = datasets.Dataset.from_dict({"tokens": [row.tolist() for row in DOCUMENTS]})
    dataset.save_to_disk(tmp_path / "saved")
    assert_holds(open_(tmp_path / "saved", format="packed", text_column="tokens"), DOCUMENTS)
    dataset.shuffle(seed=1).save_to_disk(tmp_path / "shuffled")
    shuffled = open_(tmp_path / "shuffled", format="packed", text_column="tokens")
    assert sorted(len(record["input_ids"]) for record in shuffled.read(range(7))) == sorted(map(len, DOCUMENTS))


def test_bad_packed_rows_say_where_and_why(tmp_path):
    path = packed(tmp_path / "a.parquet", [[1], None, [], [2, None], [3, 500], [-1], [499]])
    read = open_(path, format="packed").read(range(7))
    assert [row.reason if isinstance(row, BadRow) else row["input_ids"].tolist() for row in read] == [
        [1],
        *["no token ids"] * 3,
        *["id outside the vocabulary"] * 2,
        [499],
    ]
    assert str(read[4]) == f"{path}, row 5: id outside the vocabulary (id 500 of a vocabulary of 500)"


def test_long_documents_fall_into_documents(tmp_path):
    source = open_(shards(tmp_path / "out"), limit=64)
    parts = [document[start : start + 64] for document in DOCUMENTS for start in range(0, len(document), 64)]
    assert_holds(source, parts)
    assert cut_offsets(np.array([0, 3, 3, 4], np.uint64), 3).tolist() == [0, 3, 3, 4]
    assert cut_offsets(np.array([0, 7, 13], np.uint64), 3).tolist() == [0, 3, 6, 7, 10, 13]


def test_a_block_is_a_slice_of_neighbours_in_a_large_corpus_and_a_document_in_a_small_one(tmp_path):
    assert open_(shards(tmp_path / "small")).block == 1
    documents = [np.full(10, number % 500, np.int32) for number in range(20_000)]
    source = open_(shards(tmp_path / "large", documents=documents, size=50_000))
    assert source.block == 20_000 // 4096
    tokens, lengths = source.read_tokens(range(5, 5 + source.block))
    assert tokens.reshape(-1, 10)[:, 0].tolist() == [5, 6, 7, 8] and set(lengths) == {10}


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (lambda folder: shards(folder / "x", OTHER), {}, r"tokens of the tokenizer 'other' \(bbbbbbbb.*job's is 'own'"),
        (lambda folder: shards(folder / "x"), {"token_dtype": "uint32"}, "says uint16: take token_dtype out"),
        (lambda folder: bare(folder / "a.bin", [1, 2, 500]), {"token_dtype": "uint16"}, "token 2 .byte 4.: id 500"),
        (lambda folder: bare(folder / "a.bin", [1, 2, 3]), {"token_dtype": "uint32"}, "6 bytes are no whole number"),
        (lambda folder: bare(folder / "a.bin", []), {"token_dtype": "uint16"}, "holds no documents"),
        (lambda folder: shards(folder / "x", documents=[]), {}, "no bin files in"),
        (
            lambda folder: packed(folder / "a.parquet", ["a"], pa.string()),
            {"format": "packed"},
            "holds string, not",
        ),
        (
            lambda folder: packed(folder / "a.parquet", [[1]]),
            {"format": "packed", "text_column": "id"},
            "no column 'id'",
        ),
        (lambda folder: packed(folder / "a.parquet", []), {"format": "packed"}, "holds no documents"),
        (
            lambda folder: packed(folder / "a.parquet", [[1]]),
            {"token_dtype": "uint16"},
            "token_dtype = 'uint16' has no effect on parquet files",
        ),
    ],
)
def test_what_does_not_fit_the_job_is_one_line(tmp_path, make, fields, message):
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        open_(path, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"path": "builtin:python-stdlib", "token_dtype": "uint16"},
            "token_dtype = 'uint16' has no effect.*take it out",
        ),
        ({"path": "builtin:python-stdlib", "streaming": True}, "leave format out"),
        ({"path": "some/corpus", "format": "bin"}, "no file or folder 'some/corpus' of format bin"),
        ({"text_column": "ids"}, "text_column = 'ids' has no effect on .bin files, token ids; set only data_dir, data"),
        ({"layout": "messages"}, "layout = 'messages' has no effect on .bin files, token ids"),
        ({"streaming": True}, "is local: set streaming = false"),
        ({"split": "test"}, "is local and has no split 'test'"),
    ],
)
def test_what_a_source_cannot_follow_is_not_ignored(tmp_path, fields, message):
    path = fields.pop("path", None) or shards(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        open_(path, **fields)


def test_shards_of_two_tokenizers_are_two_sources(tmp_path):
    shards(tmp_path / "a")
    shards(tmp_path / "b", OTHER)
    with pytest.raises(DataError, match="are of different tokenizers: make two sources"):
        open_(tmp_path)


@pytest.mark.parametrize("name", ["shard_00001.bin", "shard_00001.idx"])
def test_a_shard_with_other_bytes_than_its_checksum_is_refused(tmp_path, name):
    open_(shards(tmp_path / "out"))
    path = tmp_path / "out" / name
    data = bytearray(path.read_bytes())
    data[8] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="shard_00001.bin or its index is damaged: their bytes hash to"):
        open_(tmp_path / "out")


def test_an_id_outside_the_vocabulary_is_named_with_its_place(tmp_path):
    ids = np.zeros(3_000_000, "<u2")
    ids[1_234_567] = 777
    source = open_(bare(tmp_path / "a.bin", ids), token_dtype="uint16")
    number = 1_234_567 // len(source.read([0])[0]["input_ids"])
    with pytest.raises(DataError, match=r"a.bin, token 1234567 \(byte 2469134\): id 777 is outside .* 500 ids"):
        source.read([3, number, 0])


@pytest.mark.parametrize("change", ["cut", "touched", "gone"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, change):
    path = bare(tmp_path / "a.bin", GENERATOR.integers(0, 500, 5000))
    source = open_(path, token_dtype="uint16")
    source.read([0])
    if change == "cut":
        os.truncate(path, 100)
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    with pytest.raises(DataError, match="a.bin (changed while it was read|cannot be read any more)"):
        source.read([4])
