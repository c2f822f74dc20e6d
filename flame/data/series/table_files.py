"""Reading csv and parquet files of series: batches of rows, in the wide layout or the long one."""

import csv
import functools
from collections import deque
from collections.abc import Iterator
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from flame.data.compressed import DAMAGE, decompressed
from flame.data.series.converted import SeriesWriter
from flame.data.series.labels import MISSING
from flame.data.series.table_layouts import write_long, write_wide
from flame.data.series.tables import (
    BadLine,
    Batch,
    Columns,
    Wanted,
    choose_columns,
    is_number_type,
    numbers_of_column,
)
from flame.data.series.text_lines import is_number, one_line, utf8_stream
from flame.data.sources.storage import FileInfo
from flame.errors import DataError

_BLOCK = 1 << 24  # bytes of csv at once: no row may be longer
_ROWS = 4096  # of parquet at once
_SEPARATORS = ",;\t|"


def read_csv(file: FileInfo, writer: SeriesWriter, wanted: Wanted) -> None:
    """Reads a csv file, ``.tsv`` and compressed ones included.

    Args:
        file: The file, with a line of column names.
        writer: Takes its series.
        wanted: What the job says of the columns.

    Raises:
        DataError: It is damaged, or lacks a column.
    """
    names, separator = _header(file)
    batches = _csv_batches(file, names, separator)
    first = next(batches, None)
    held: list[Batch | BadLine] = []
    while isinstance(first, BadLine):
        held.append(first)
        first = next(batches, None)
    table = first.table if first is not None else pa.table({name: pa.array([], pa.string()) for name in names})
    numeric = [_looks_like_numbers(table.column(place)) for place in range(len(names))]
    columns = choose_columns(table.schema, numeric, wanted, file.path)
    if first is not None:
        held.append(first)
    _write(file, _chain(held, batches), columns, writer)


def read_parquet(file: FileInfo, writer: SeriesWriter, wanted: Wanted) -> None:
    """Reads a parquet file.

    Args:
        file: The file.
        writer: Takes its series.
        wanted: What the job says of the columns.

    Raises:
        DataError: It is damaged, or lacks a column.
    """
    try:
        with pq.ParquetFile(file.path) as parquet:
            schema = parquet.schema_arrow
            numeric = [is_number_type(field.type) for field in schema]
            columns = choose_columns(schema, numeric, wanted, file.path)
            _write(file, _parquet_batches(file.path, parquet, columns), columns, writer)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file.path} is not a complete parquet file ({one_line(error)}): fetch it again") from error


def _write(file: FileInfo, batches: Iterator[Batch | BadLine], columns: Columns, writer: SeriesWriter) -> None:
    writer.unit = "row"
    if columns.series:
        write_long(file, batches, columns, writer)
    else:
        write_wide(batches, columns, writer)
    writer.finish("found" if columns.label else "none")


def _header(file: FileInfo) -> tuple[list[str], str]:
    """The names of the columns, and what is between cells."""
    try:
        with open(file.path, "rb") as stored:
            line = decompressed(file.path, stored).readline(_BLOCK).decode("utf-8-sig").rstrip("\r\n")
    except DAMAGE as error:
        raise DataError(f"{file.path} cannot be decompressed ({error}): fetch it again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file.path} cannot be read as text ({one_line(error)}): save it as csv in UTF-8") from error
    separator = max(_SEPARATORS, key=line.count)
    if ".tsv" in PurePath(file.path).suffixes:
        separator = "\t"
    names = next(csv.reader([line], delimiter=separator), [])
    if not any(names):
        raise DataError(f"{file.path} begins with an empty line: its first line should name the columns")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file.path} has two columns '{twice}': rename one")
    if len(names) > 1 and all(map(is_number, names)) and not _counts(names):
        raise DataError(f"{file.path} begins with numbers ({names[0]}, {names[1]}, ...): add a line of column names")
    return names, separator


def _csv_batches(file: FileInfo, names: list[str], separator: str) -> Iterator[Batch | BadLine]:
    """The rows as strings, and those of another number of cells; rows are numbered from 1, the header not counted."""
    bad: deque[tuple[int, str]] = deque()
    number = 1
    try:
        with open(file.path, "rb") as stored:
            reader = pa_csv.open_csv(
                utf8_stream(decompressed(file.path, stored)),
                pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK, column_names=names, skip_rows=1),
                pa_csv.ParseOptions(delimiter=separator, invalid_row_handler=functools.partial(_note_bad_row, bad)),
                pa_csv.ConvertOptions(
                    column_types={name: pa.string() for name in names}, null_values=MISSING, strings_can_be_null=True
                ),
            )
            for batch in reader:
                table, start = pa.Table.from_batches([batch]), 0
                while bad and bad[0][0] - number <= len(batch) - start:  # it stands before or among these rows
                    place = start + bad[0][0] - number
                    if place > start:
                        yield Batch(np.arange(number, bad[0][0]), table.slice(start, place - start))
                    yield BadLine(*bad[0])
                    start, number = place, bad.popleft()[0] + 1
                yield Batch(np.arange(number, number + len(batch) - start), table.slice(start))
                number += len(batch) - start
            yield from (BadLine(row, detail) for row, detail in bad)
    except DAMAGE as error:
        raise DataError(
            f"{file.path} cannot be decompressed after row {number - 1} ({error}): it is damaged or incomplete, fetch "
            "it again"
        ) from error
    except (pa.ArrowException, OSError) as error:
        if number == 1 and "Empty CSV" in str(error):
            return
        raise DataError(
            f"{file.path} cannot be read after row {number - 1} ({one_line(error)}): mend the file"
        ) from error


def _note_bad_row(bad: deque[tuple[int, str]], row: pa_csv.InvalidRow) -> str:
    bad.append(((row.number or 0) - 1, f"{row.actual_columns} cells, not {row.expected_columns}"))
    return "skip"


def _parquet_batches(path: str, parquet: pq.ParquetFile, columns: Columns) -> Iterator[Batch | BadLine]:
    first = 1
    for group in range(parquet.num_row_groups):
        try:
            for batch in parquet.iter_batches(_ROWS, [group], columns.needed, use_threads=False):
                yield Batch(np.arange(first, first + len(batch)), pa.Table.from_batches([batch]))
                first += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}, row group {group + 1}: cannot be loaded ({one_line(error)}): fetch the file again"
            ) from error


def _chain(held: list[Batch | BadLine], batches: Iterator[Batch | BadLine]) -> Iterator[Batch | BadLine]:
    yield from held
    yield from batches


def _looks_like_numbers(column: pa.ChunkedArray) -> bool:
    """Whether some cell is a number, or there is none at all: single cells that are none are faults of their rows."""
    values, _ = numbers_of_column(column)
    return column.null_count == len(column) or bool((~np.isnan(values)).any())


def _counts(names: list[str]) -> bool:
    """Whether names are the numbers of steps."""
    return all(name.isdecimal() for name in names) and [int(name) - int(names[0]) for name in names] == [
        *range(len(names))
    ]
