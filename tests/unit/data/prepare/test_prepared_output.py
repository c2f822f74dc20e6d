"""Every form of output: read back by flame, the same for any number of tasks, split without leaks."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.data import Document
from prepared_texts import KEEP_ALL, TOKENIZER, digests, make_builder, random_texts, run_stages

from flame.config import Data, Source, Training
from flame.data.loader import build_loader
from flame.data.prepare.documents import DocumentWriter
from flame.data.prepare.options import Output, Shuffle, Split
from flame.data.prepare.writing import stages
from flame.data.prepare.writing.shard_plan import shard_bounds
from flame.data.prepare.writing.tokens import token_dtype
from flame.data.shards import read_manifest
from flame.data.sources.open import open_source
from flame.data.sources.records import BadRow
from flame.errors import ConfigError, DataError
from flame.tokenizer.load import load_tokenizer

TEXTS = random_texts(120)
SIZE = sum(map(len, TEXTS))
OUTPUTS = {
    "parquet": Output(format="parquet", shard_bytes=SIZE // 5, row_group=16, columns=["source", "row"]),
    "tokens": Output(format="tokens", tokenizer=TOKENIZER, shard_bytes=SIZE // 5),
    "packed": Output(format="packed", tokenizer=TOKENIZER, shard_bytes=SIZE // 5, row_length=65, row_group=16),
}


def encoder():
    return stages.load_tokens(TOKENIZER, None, True).encoder


def write(folder, output, texts=TEXTS, tasks=1, **sections):
    sections = {"dedup": KEEP_ALL, **sections}
    builder = make_builder(folder, texts, tasks, output=output, **sections)
    run_stages(builder)
    return builder.published


def read(folder, **options):
    source = open_source(Source(path=str(folder), **options), None, 1 << 24)
    records = source.read(range(len(source)))
    return [record for record in records if not isinstance(record, BadRow)]


@pytest.mark.parametrize("form", OUTPUTS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_any_number_of_tasks_writes_the_same_bytes(tmp_path, form, shuffle):
    found = [
        digests(write(tmp_path / str(tasks), OUTPUTS[form], tasks=tasks, shuffle=Shuffle(shuffle), split=Split(0.2)))
        for tasks in (1, 4)
    ]
    assert found[0] == found[1]
    assert {name.split("/")[0] for name in found[0]} == {"train", "val"}


def test_text_comes_back_in_corpus_order_with_its_columns(tmp_path):
    folder = write(tmp_path, OUTPUTS["parquet"], shuffle=Shuffle(False)) / "train"
    records = read(folder)
    assert [record["text"] for record in records] == TEXTS
    assert [record["row"] for record in records] == list(range(120))
    assert {record["source"] for record in records} == {"texts"}
    for path in sorted(folder.iterdir()):
        metadata = pq.read_metadata(path)
        assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups - 1)] == [16] * (
            metadata.num_row_groups - 1
        )
        assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_shuffled_text_is_complete_and_the_seed_decides_its_order(tmp_path):
    orders = [
        [record["row"] for record in read(write(tmp_path / str(seed), OUTPUTS["parquet"], seed=seed) / "train")]
        for seed in (1, 2)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(120))
    # A random order of 120 has about one document in its place, and neighbours some 40 apart.
    for order in orders:
        assert sum(np.array(order) == np.arange(120)) < 8
        assert np.abs(np.diff(order)).mean() > 25
    assert orders[0] != orders[1]


def test_token_shards_come_back_as_the_encoder_makes_them(tmp_path):
    folder = write(tmp_path, OUTPUTS["tokens"], shuffle=Shuffle(False)) / "train"
    expected = encoder().encode([{"text": text} for text in TEXTS])
    manifest = read_manifest(folder)
    assert manifest.dtype == "uint16" and len(manifest.shards) == 5
    assert [entry.file for entry in manifest.shards] == [f"shard_{number:05d}.bin" for number in range(5)]
    for record, ids in zip(read(folder), expected, strict=True):
        assert np.array_equal(record["input_ids"], ids)


def test_packed_rows_are_the_shards_tokens_in_a_row(tmp_path):
    folder = write(tmp_path, OUTPUTS["packed"], shuffle=Shuffle(False)) / "train"
    expected = encoder().encode([{"text": text} for text in TEXTS])
    rows = [np.array(record["input_ids"]) for record in read(folder, format="packed")]
    assert {len(row) for row in rows} == {65}
    tokens = np.concatenate(expected)
    first = pq.read_table(folder / "shard_00000.parquet")
    assert first.schema.field("input_ids").type == pa.list_(pa.int32())
    assert np.array_equal(np.concatenate(rows[: len(first)]), tokens[: 65 * len(first)])
    note = json.loads((tmp_path / "notes/written/00000.json").read_text())
    left = sum(json.loads(p.read_text())["left_over"]["tokens"] for p in (tmp_path / "notes/written").iterdir())
    assert left == len(tokens) - 65 * len(rows) and note["train"]["files"] == 1


@pytest.mark.parametrize("form", OUTPUTS)
def test_a_job_trains_on_it(tmp_path, form):
    folder = write(tmp_path, OUTPUTS[form]) / "train"
    loader = build_loader(
        sources=[Source(path=str(folder), format="packed" if form == "packed" else "")],
        data=Data(on_bad_row="error"),
        encoder=encoder(),
        seq_len=64,
        context_len=0,
        varlen=False,
        global_batch_size=2,
        local_batch_size=2,
        dp_rank=0,
        dp_world_size=1,
        seed=1,
        dataloader=type(Training().dataloader)(num_workers=0),
    )
    for inputs, labels in islice(loader, 3):
        assert inputs["input_ids"].shape == labels.shape == (2, 64)
    loader.close()


def test_separators_are_as_the_job_says(tmp_path):
    tokenizer = load_tokenizer(TOKENIZER)
    output = replace(OUTPUTS["tokens"], add_bos=True, add_eos=False)
    for record in read(write(tmp_path, output) / "train"):
        assert record["input_ids"][0] == tokenizer.bos_token_id
        assert record["input_ids"][-1] != tokenizer.eos_token_id


def test_equal_texts_are_never_on_both_sides(tmp_path):
    texts = TEXTS + [text.upper() + "\n" for text in TEXTS]
    folder = write(tmp_path, OUTPUTS["parquet"], texts, split=Split(0.3))
    train, val = ({row["row"] % 120 for row in read(folder / split)} for split in ("train", "val"))
    assert not train & val and len(train | val) == 120
    assert 20 < len(val) < 52  # 36, give or take 3 standard deviations


@pytest.mark.parametrize("tasks", [1, 4])
def test_a_number_of_documents_is_held_out_exactly(tmp_path, tasks):
    folder = write(tmp_path, OUTPUTS["parquet"], tasks=tasks, split=Split(validation_documents=17))
    train, val = (sorted(row["row"] for row in read(folder / split)) for split in ("train", "val"))
    assert len(val) == 17 and sorted(train + val) == list(range(120))


def test_a_small_share_holds_out_at_least_one_document(tmp_path):
    folder = write(tmp_path, OUTPUTS["parquet"], tasks=3, split=Split(0.0001))
    assert len(read(folder / "val")) == 1 and len(read(folder / "train")) == 119


def test_a_share_of_a_large_corpus_follows_from_hashes_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "_SMALL_BYTES", 0)
    folder = write(tmp_path / "a", OUTPUTS["parquet"], tasks=3, split=Split(0.2))
    assert 11 < len(read(folder / "val")) < 37  # 24, give or take 3 standard deviations
    with pytest.raises(DataError, match=r"split.validation = 0.0001 holds out none"):
        write(tmp_path / "b", OUTPUTS["parquet"], split=Split(0.0001))


def test_holding_out_everything_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holding out 500 of the 120 documents that are left leaves none"):
        write(tmp_path / "a", OUTPUTS["parquet"], tasks=2, split=Split(validation_documents=500))
    with pytest.raises(DataError, match="holding out 1 of the 1 documents"):
        write(tmp_path / "b", OUTPUTS["parquet"], TEXTS[:1], split=Split(0.1))


def test_columns_have_the_narrowest_type_that_holds_their_values(tmp_path):
    values = {
        "whole": [1, 2, None],
        "number": [1, 2.5, None],
        "flag": [True, False, None],
        "mixed": [1, "x", None],
        "list": [["a"], [], None],
    }
    output = Output(format="parquet", columns=list(values))
    builder = make_builder(tmp_path, TEXTS[:3], 2, output=output, dedup=KEEP_ALL, shuffle=Shuffle(False))
    metadata = [{"source": "texts", **{name: column[row] for name, column in values.items()}} for row in range(3)]
    documents = [Document(TEXTS[row], str(row), metadata=metadata[row]) for row in range(3)]
    for rank, share in enumerate((documents[:1], documents[1:])):
        list(DocumentWriter(builder.documents.folder).run(share, rank, 2))
    run_stages(builder)
    table = pq.read_table(builder.published / "train/shard_00000.parquet")
    assert [str(table.schema.field(name).type) for name in values] == ["int64", "double", "bool", "string", "string"]
    assert table["mixed"].to_pylist() == ["1", "x", None] and table["list"].to_pylist() == ['["a"]', "[]", None]
    assert table["whole"].to_pylist() == [1, 2, None] and table["number"].to_pylist() == [1.0, 2.5, None]


def test_columns_that_no_document_has_are_an_error(tmp_path):
    with pytest.raises(DataError, match="output.columns names 'rwo', which no document has.*Did you mean 'row'"):
        write(tmp_path, Output(format="parquet", columns=["rwo"]))


def test_no_document_and_too_few_tokens_are_errors(tmp_path):
    for name, split in (("a", Split(0)), ("b", Split(0.1)), ("c", Split(validation_documents=3))):
        with pytest.raises(DataError, match="no documents are left to write"):
            write(tmp_path / name, OUTPUTS["parquet"], [], tasks=2, split=split)
    with pytest.raises(DataError, match="fewer tokens than a row of 65"):
        write(tmp_path / "d", OUTPUTS["packed"], ["a few words"])


@pytest.mark.parametrize(
    "output, message",
    [
        (Output(format="tokens"), "needs output.tokenizer"),
        (Output(format="parquet", tokenizer="gpt2"), "has no use for"),
        (replace(OUTPUTS["tokens"], columns=["row"]), "output.columns is for"),
    ],
)
def test_keys_that_do_not_go_together_are_refused_before_anything_runs(tmp_path, output, message):
    with pytest.raises(ConfigError, match=message):
        make_builder(tmp_path, ["x"], output=output)


@pytest.mark.parametrize("sizes, target", [([5] * 100, 50), ([1, 500, 1, 1, 500], 50), ([0, 0, 7, 0], 1), ([9], 100)])
def test_shards_are_of_about_equal_size_and_never_empty(sizes, target):
    bounds = shard_bounds(np.array(sizes, np.int64), target)
    parts = [sum(sizes[first:last]) for first, last in zip(bounds, bounds[1:], strict=False)]
    assert bounds[0] == 0 and bounds[-1] == len(sizes) and all(parts)
    assert max(parts) <= target + max(sizes)


def test_the_vocabulary_decides_the_type_of_ids():
    assert token_dtype(65536) == "uint16" and token_dtype(65537) == "uint32"
