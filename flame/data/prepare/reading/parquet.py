"""Reading a column of text from parquet files."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flame.data.prepare.reading.rows import BadFile, Fault, Reading, Row, Rows
from flame.errors import DataError

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1024
_BUFFER = 1 << 20


def read_parquet(file: Any, reading: Reading) -> Rows:
    """Yields the rows of a parquet file; memory holds some 4 MiB of text, or one longer value.

    Raises:
        BadFile: The file is damaged.
        DataError: It has no column of text.
    """
    number = 0
    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER) as table:
            column = reading.column(table.schema_arrow.names)
            _check(table.schema_arrow.field(column).type, column, reading.path)
            for batch in _batches(table, column, reading.columns):
                texts, *others = batch.columns
                for place, text in enumerate(texts.cast(pa.large_binary())):
                    number += 1
                    values = zip(batch.schema.names[1:], (other[place] for other in others), strict=True)
                    metadata = {name: _plain(value.as_py()) for name, value in values}
                    yield _row(number, text.as_buffer(), metadata, reading)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk or the network, not the file
        detail = " ".join(str(error).split())
        raise BadFile(f"{reading.path} is damaged after row {number:,}: {detail}") from error


def _batches(table: pq.ParquetFile, column: str, others: list[str]) -> Iterator[pa.RecordBatch]:
    names = table.schema_arrow.names
    wanted = [column, *(name for name in others if name in names and name != column)]
    for group in range(table.num_row_groups):
        described = table.metadata.row_group(group)
        stored = [described.column(number) for number in range(described.num_columns)]
        size = sum(part.total_uncompressed_size for part in stored if part.path_in_schema == column)
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * described.num_rows // max(size, 1)))
        for batch in table.iter_batches(rows, row_groups=[group], columns=wanted, use_threads=False):
            yield batch.select(wanted)


def _check(kind: pa.DataType, column: str, path: str) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise DataError(f"{path}: column '{column}' holds {kind}, not text: set text_column to one that does")


def _row(number: int, buffer: pa.Buffer | None, metadata: dict[str, Any], reading: Reading) -> Row | Fault:
    if buffer is None:
        return Fault(number, "no text", "the value is null")
    if buffer.size > reading.max_bytes:
        return reading.cut_or_fault(number, buffer[: reading.max_bytes].to_pybytes(), metadata)
    data = buffer.to_pybytes()
    try:
        return Row(number, data.decode(), metadata)
    except UnicodeDecodeError as error:
        return Fault(number, "invalid UTF-8", f"byte {error.start}", data[:300].decode("utf-8", "replace"))


def _plain(value: Any) -> Any:
    """What JSON can hold stays; anything else, such as a date, becomes its text."""
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
