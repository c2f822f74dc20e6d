"""Text shards: parquet with a column ``text``, as nanochat and most corpora of the hub have it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flame.data.prepare.reporting.tally import utf8_bytes
from flame.data.prepare.writing.written import Written
from flame.files import atomic


def write_text(
    path: Path, batches: Iterator[pa.RecordBatch], columns: dict[str, str], row_group: int, split: str, written: Written
) -> None:
    """Writes a shard, which appears when it is complete.

    Args:
        path: The parquet file.
        batches: Documents: columns ``text`` and ``metadata`` (JSON).
        columns: Metadata to write beside the text, by Arrow type.
        row_group: Documents of a row group.
        split: What the shard is part of.
        written: Counts to add to.
    """
    schema = pa.schema(
        [("text", pa.large_string()), *((name, pa.type_for_alias(kind)) for name, kind in columns.items())]
    )
    with atomic(path) as temporary:
        # Texts differ: neither a dictionary nor their smallest and largest value is of use.
        options: dict[str, Any] = {"use_dictionary": list(columns), "write_statistics": list(columns)}
        with pq.ParquetWriter(temporary, schema, compression="zstd", **options) as writer:
            for group in _groups(batches, row_group):
                metadata = [json.loads(value) for value in group["metadata"].to_pylist()]
                for text, values in zip(group["text"].to_pylist(), metadata, strict=True):
                    written.add(split, values["source"], utf8_bytes(text))
                further = [_column(metadata, name, kind) for name, kind in columns.items()]
                text = group["text"].combine_chunks()
                writer.write_table(pa.Table.from_arrays([text, *further], schema=schema), row_group_size=row_group)
    written.files[split] += 1


def _groups(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Cuts batches of any size into tables of ``rows``; the last may be shorter."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while count + batch.num_rows >= rows:
            yield pa.Table.from_batches([*waiting, batch.slice(0, rows - count)])
            batch = batch.slice(rows - count)
            waiting, count = [], 0
        if batch.num_rows:
            waiting.append(batch)
            count += batch.num_rows
    if waiting:
        yield pa.Table.from_batches(waiting)


def _column(metadata: list[dict[str, Any]], name: str, kind: str) -> pa.Array:
    values = [values.get(name) for values in metadata]
    if kind == "string":
        values = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.array(values, pa.type_for_alias(kind))
