"""Damaged files of every format: an error of one line that names the file, bad rows, or the same documents.

A crash would end the test run, a hang its time; garbage is told by the texts, which all follow one pattern. Formats
without checksums (bare tokens, packed rows, parquet) cannot notice every changed byte: what they give has to be of the
right type at least.
"""

import gzip
import json
import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from data_stand_ins import Source
from datasets import config as datasets_config

from flame.data.shards import TokenizerIdentity, TokenShardWriter, write_manifest
from flame.data.sources.open import open_source
from flame.data.sources.records import BadRow
from flame.errors import DataError

IDENTITY = TokenizerIdentity("a" * 32, "own", 1000)
TEXTS = [f"document {number}: " + "some words " * (number % 9) for number in range(300)]
PATTERN = re.compile(r"document (\d+): (some words )*")
ROWS = [np.arange(number, number + 30) for number in range(300)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets_cache")))
    logging.getLogger("datasets").setLevel(logging.ERROR)


def jsonl(folder: Path) -> Path:
    (folder / "a.jsonl").write_bytes(LINES)
    return folder / "a.jsonl"


def jsonl_gz(folder: Path) -> Path:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    return folder / "a.jsonl.gz"


def jsonl_zst(folder: Path) -> Path:
    (folder / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(LINES))
    return folder / "a.jsonl.zst"


def txt(folder: Path) -> Path:
    (folder / "a.txt").write_text("\n".join(TEXTS))
    return folder / "a.txt"


def parquet(folder: Path) -> Path:
    table = pa.table({"text": TEXTS})
    pq.write_table(table, folder / "a.parquet", row_group_size=100, write_page_checksum=True)
    return folder / "a.parquet"


def packed(folder: Path) -> Path:
    table = pa.table({"input_ids": pa.array(ROWS, pa.list_(pa.int32()))})
    pq.write_table(table, folder / "a.parquet", row_group_size=100)
    return folder / "a.parquet"


def saved(folder: Path) -> Path:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder)
    return next(folder.glob("*.arrow"))


def shards(folder: Path) -> Path:
    with TokenShardWriter(folder, dtype="uint16", tokenizer=IDENTITY, tokens_per_shard=1 << 20) as writer:
        for row in ROWS:
            writer.add(row)
        write_manifest(folder, "uint16", IDENTITY, writer.close())
    return folder / "shard_00000.bin"


def index(folder: Path) -> Path:
    shards(folder)
    return folder / "shard_00000.idx"


def manifest(folder: Path) -> Path:
    shards(folder)
    return folder / "tokens.json"


def bare(folder: Path) -> Path:
    np.concatenate(ROWS).astype("<u2").tofile(folder / "a.bin")
    return folder / "a.bin"


def cut(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data))]


def flip(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice([1, 1, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def blank(data: bytearray, chance: random.Random) -> bytearray:
    start = chance.randrange(len(data))
    stop = min(len(data), start + chance.choice([4, 64, 4096]))
    data[start:stop] = bytes(stop - start)
    return data


def splice(data: bytearray, chance: random.Random) -> bytearray:
    """Repeats a part of the file in the middle of it, as a download that was resumed at the wrong place does."""
    start, place = chance.randrange(len(data)), chance.randrange(len(data))
    return data[:place] + data[start : start + chance.choice([10, 1000])] + data[place:]


def check_record(record: dict | BadRow, is_exact: bool) -> None:
    if isinstance(record, BadRow):
        assert record.where and record.reason and "\n" not in str(record)
    elif "input_ids" in record:
        ids = record["input_ids"]
        assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < 1000
        assert not is_exact or (np.diff(ids) == 1).all()
    else:
        assert isinstance(record["text"], str)
        assert not is_exact or PATTERN.fullmatch(record["text"])


@pytest.mark.parametrize("damage", [cut, flip, blank, splice])
@pytest.mark.parametrize(
    ("write", "fields", "is_exact"),
    [
        (jsonl, {}, False),
        (jsonl_gz, {}, True),
        (jsonl_zst, {}, True),
        (txt, {}, False),
        (parquet, {}, False),
        (packed, {"format": "packed"}, False),
        (saved, {}, False),
        (shards, {}, True),
        (index, {}, True),
        (manifest, {}, True),
        (bare, {"token_dtype": "uint16"}, False),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_named_and_never_taken_for_documents(
    tmp_path: Path, write: Callable[[Path], Path], fields: dict, is_exact: bool, damage: Callable
):
    found = set()
    for seed in range(4):
        chance = random.Random(f"{write.__name__} {damage.__name__} {seed}")
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = write(folder)
        whole = path.read_bytes()
        path.write_bytes(damage(bytearray(whole), chance))
        is_one_file = write in (jsonl, jsonl_gz, jsonl_zst, txt, parquet, packed, bare)
        try:
            source = open_source(Source(str(path if is_one_file else folder), **fields), ("text",), 1 << 20, IDENTITY)
            for number in range(len(source)):
                check_record(source.read([number])[0], is_exact)
            found.add("read")
        except DataError as error:
            assert "\n" not in str(error) and (str(folder) in str(error) or path.name in str(error)), error
            found.add("refused")
    if write in (shards, jsonl_gz, jsonl_zst) or (damage in (cut, splice) and write is not jsonl and write is not txt):
        assert "refused" in found


def test_a_document_of_many_limits_is_cut_or_named_and_never_read_whole(tmp_path):
    """As one of 2 GB with the usual limit: 2,000 times ``max_document_bytes``."""
    limit = 1000
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 2000 * limit + '"}\n{"text": "small"}\n')
    read: Any = open_source(Source(str(tmp_path / "a.jsonl")), ("text",), limit).read([0, 1])
    assert isinstance(read[0], BadRow) and read[0].reason == "row too large" and read[1] == {"text": "small"}
    (tmp_path / "a.txt").write_text("word " * 400 * limit)
    source: Any = open_source(Source(str(tmp_path / "a.txt")), ("text",), limit)
    assert len(source) == 2000 and all(len(record["text"]) == limit for record in source.read(range(0, 2000, 100)))
    np.zeros(2000 * limit, "<u2").tofile(tmp_path / "a.bin")
    source = open_source(Source(str(tmp_path / "a.bin"), token_dtype="uint16"), None, limit, IDENTITY)
    assert max(len(record["input_ids"]) for record in source.read(range(len(source)))) <= 1 << 16


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_local_file_that_changes_between_epochs_or_runs_is_named(tmp_path, name, caplog):
    path = tmp_path / name
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    source = open_source(Source(str(path)), ("text",), 1 << 20)
    source.read([0])
    path.write_text('{"text": "three"}\n{"text": "four"}\n')
    with pytest.raises(DataError, match=f"{name} changed while it was read .32 bytes before, 35 now."):
        source.read([0])
    assert not caplog.records
    open_source(Source(str(path)), ("text",), 1 << 20)
    assert f"{name} changed since the source was last read: a run that is resumed sees other documents" in caplog.text
    caplog.clear()
    open_source(Source(str(path)), ("text",), 1 << 20)
    assert not caplog.records
