"""From rows of a table to series: a row is a series (wide), or a step of one (long)."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from flame.data.series.converted import SeriesWriter
from flame.data.series.tables import (
    BadLine,
    Batch,
    Columns,
    labels_of_column,
    numbers_of_column,
    numbers_of_columns,
    series_of_lists,
)
from flame.data.series.ucr_files import without_tail
from flame.data.sources.storage import FileInfo
from flame.errors import DataError


def write_wide(batches: Iterator[Batch | BadLine], columns: Columns, writer: SeriesWriter) -> None:
    """Writes tables whose rows are series; what is missing at the end of a row is the end of a shorter series.

    Args:
        batches: The rows.
        columns: Which column is what.
        writer: Takes the series.
    """
    for batch in batches:
        if isinstance(batch, BadLine):
            writer.fault("other number of columns", batch.detail, batch.row)
            continue
        labels = labels_of_column(batch.table.column(columns.label)) if columns.label else [None] * len(batch.rows)
        if columns.are_lists:
            _write_lists(batch, labels, columns, writer)
            continue
        values, bad = numbers_of_columns(batch.table, columns.values)
        for place, (row, label) in enumerate(zip(batch.rows.tolist(), labels, strict=True)):
            if place in bad:
                writer.fault("not a number", bad[place], row)
            else:
                writer.add(without_tail(values[place])[:, None], label, row)


def write_long(file: FileInfo, batches: Iterator[Batch | BadLine], columns: Columns, writer: SeriesWriter) -> None:
    """Writes a table whose rows are steps, in the order of its time column; series in order of appearance.

    Args:
        file: The table, for messages.
        batches: The rows.
        columns: Which column is what.
        writer: Takes the series.

    Raises:
        DataError: A row does not say which series it belongs to.
    """
    held: list[Batch] = []
    for batch in batches:
        if isinstance(batch, BadLine):
            raise DataError(f"{file.path}, row {batch.row} has {batch.detail}: mend the file")
        held.append(batch._replace(table=batch.table.select(columns.needed)))
    if not held:
        return
    rows = np.concatenate([batch.rows for batch in held])
    table = pa.concat_tables([batch.table for batch in held])
    ids = table.column(columns.series).combine_chunks()
    if ids.null_count:
        first = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{file.path}, row {rows[first]}: no '{columns.series}': every row has to name its series")
    encoded = ids if pa.types.is_dictionary(ids.type) else ids.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)  # [rows]: numbers of series
    times, unordered = _times(table, columns)
    order = np.lexsort((times, codes)) if len(times) else np.argsort(codes, kind="stable")
    values, bad = numbers_of_columns(table, columns.values)
    labels = labels_of_column(table.column(columns.label)) if columns.label else None
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    members = np.split(order, starts[1:])  # of every series: its rows in the order of time
    for own in sorted(members, key=lambda own: own.min()):
        first = int(rows[own.min()])
        marked = own[[int(row) in bad for row in own]] if bad else own[:0]
        names = {labels[row] for row in own} if labels else {None}
        if len(marked):
            writer.fault("not a number", f"row {rows[marked[0]]}: {bad[int(marked[0])]}", first)
        elif unordered[own].any():
            writer.fault("no time", f"row {rows[own[unordered[own]][0]]} has no '{columns.time}'", first)
        elif len(times) and (np.diff(times[own]) == 0).any():
            place = int(np.flatnonzero(np.diff(times[own]) == 0)[0])
            writer.fault("two steps of one time", f"rows {rows[own[place]]} and {rows[own[place + 1]]}", first)
        elif len(names) > 1:
            writer.fault("several labels", f"{', '.join(sorted(map(str, names)))}: a series has one", first)
        else:
            writer.add(values[own], names.pop(), first)


def _write_lists(batch: Batch, labels: Sequence[str | float | None], columns: Columns, writer: SeriesWriter) -> None:
    cells = [batch.table.column(name).combine_chunks() for name in columns.values]
    for place, (row, label) in enumerate(zip(batch.rows.tolist(), labels, strict=True)):
        values = series_of_lists([cell.slice(place, 1) for cell in cells])
        if isinstance(values, str):
            writer.fault("not a series", values, row)
        else:
            writer.add(values, label, row)


def _times(table: pa.Table, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Something to sort rows by (empty if nothing is), and which rows lack it."""
    if not columns.time:
        return np.empty(0), np.zeros(len(table), bool)
    column = table.column(columns.time).combine_chunks()
    lacking = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.int64()) if column.type.bit_width == 64 else column.cast(pa.int32())
    numbers, odd = numbers_of_column(pa.chunked_array([column]))
    if not odd:
        return np.where(lacking, 0, numbers), lacking | np.isnan(numbers)
    # Other text is sorted as text: dates have to be written such that this is their order.
    texts = np.array(column.fill_null("").to_pylist(), dtype=np.str_)
    return np.unique(texts, return_inverse=True)[1], lacking
