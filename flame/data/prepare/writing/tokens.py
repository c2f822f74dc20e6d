"""Shards of token ids: flat ``.bin`` files with an index, or packed rows in parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flame.data.encoder import TextEncoder
from flame.data.prepare.options import Output
from flame.data.prepare.reporting.tally import utf8_bytes
from flame.data.prepare.writing.written import Written
from flame.data.shards import ShardEntry, TokenizerIdentity, TokenShardWriter
from flame.files import atomic

_BATCH_CHARACTERS = 1 << 20
_ONE_SHARD = 1 << 62  # tokens: shards are cut by text, before


class Tokens(NamedTuple):
    """What makes ids of texts; it travels with a step, so that tasks need not load the tokenizer themselves."""

    encoder: TextEncoder
    identity: TokenizerIdentity


def token_dtype(vocab_size: int) -> str:
    """The smaller type that holds all ids."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write_tokens(
    folder: Path, number: int, batches: Iterator[pa.RecordBatch], tokens: Tokens, split: str, written: Written
) -> list[ShardEntry]:
    """Writes ``shard_<number>.bin`` and its index, which appear when they are complete.

    Args:
        folder: Where to write.
        number: Of the shard.
        batches: Documents: columns ``text`` and ``metadata`` (JSON).
        tokens: The encoder.
        split: What the shard is part of.
        written: Counts to add to.

    Returns:
        What the manifest says of the shard.

    Raises:
        DataError: The disk is full.
    """
    encoder, identity = tokens
    folder.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(identity.vocab_size)
    with TokenShardWriter(folder, dtype=dtype, tokenizer=identity, tokens_per_shard=_ONE_SHARD, first=number) as writer:
        for ids in _encoded(batches, encoder, split, written):
            writer.add(ids)
        entries = writer.close()
    written.files[split] += len(entries)
    return entries


def write_packed(
    path: Path, batches: Iterator[pa.RecordBatch], tokens: Tokens, output: Output, split: str, written: Written
) -> None:
    """Writes a parquet file of rows of ``output.row_length`` ids, which appears when it is complete.

    Rows are cut from the shard's documents one after the other, as Huginn's data are (Geiping et al. 2025); tokens at
    the end that fill no row are left out and counted.

    Args:
        path: The parquet file.
        batches: Documents: columns ``text`` and ``metadata`` (JSON).
        tokens: The encoder.
        output: Row length, and rows of a row group.
        split: What the shard is part of.
        written: Counts to add to.
    """
    schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
    group = output.row_length * output.row_group
    waiting: list[np.ndarray] = []
    count = 0
    with (
        atomic(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=False) as writer,
    ):
        for ids in _encoded(batches, tokens.encoder, split, written):
            waiting.append(ids)
            count += len(ids)
            if count >= group:
                flat = np.concatenate(waiting)
                full = count // group * group
                writer.write_table(_rows(flat[:full], output.row_length, schema), row_group_size=output.row_group)
                waiting, count = [flat[full:]], count - full
        flat = np.concatenate([np.empty(0, np.int32), *waiting])
        full = count // output.row_length * output.row_length
        writer.write_table(_rows(flat[:full], output.row_length, schema))
    written.left_over += count - full
    written.files[split] += 1


def _encoded(
    batches: Iterator[pa.RecordBatch], encoder: TextEncoder, split: str, written: Written
) -> Iterator[np.ndarray]:
    """Yields the ids of every document, int32, separators included."""
    for batch in batches:
        texts: list[str] = batch["text"].to_pylist()
        sources = [json.loads(value)["source"] for value in batch["metadata"].to_pylist()]
        start = 0
        while start < len(texts):
            stop, size = start, 0
            while stop < len(texts) and size < _BATCH_CHARACTERS:
                size += len(texts[stop])
                stop += 1
            for number, ids in enumerate(encoder.encode([{"text": text} for text in texts[start:stop]]), start):
                written.add(split, sources[number], utf8_bytes(texts[number]), len(ids))
                yield ids
            start = stop


def _rows(tokens: np.ndarray, length: int, schema: pa.Schema) -> pa.Table:
    offsets = np.arange(0, len(tokens) + 1, length, dtype=np.int32)
    rows = pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens, pa.int32()))
    return pa.Table.from_arrays([rows], schema=schema)
