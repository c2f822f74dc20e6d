"""Tables of a user's own, csv and parquet: which column is what, and the rows batch by batch as numbers."""

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flame.config.corpora import Source
from flame.data.series.labels import MISSING, USUAL_LABELS
from flame.data.series.text_lines import BROKEN, shown
from flame.errors import DataError, closest

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Some rows of a table."""

    rows: np.ndarray
    """Their numbers in the file, from 1: int64 ``[rows]``."""
    table: pa.Table
    """What they hold; cells of csv are strings, null where missing."""


class BadLine(NamedTuple):
    """A row that does not have the table's columns."""

    row: int
    detail: str


class Wanted(NamedTuple):
    """What the job says of the columns."""

    label: str
    values: tuple[str, ...]
    series: str
    time: str

    @classmethod
    def of(cls, config: Source) -> "Wanted":
        """What a source's table says.

        Raises:
            DataError: It contradicts itself.
        """
        wanted = cls(config.label_column, tuple(config.value_columns), config.series_column, config.time_column)
        if wanted.time and not wanted.series:
            raise DataError(
                f"'{config.path}': time_column = '{wanted.time}' orders the rows of a series: set series_column too"
            )
        named = [column for column in (wanted.label, wanted.series, wanted.time, *wanted.values) if column]
        twice = next((column for column in named if named.count(column) > 1), None)
        if twice:
            raise DataError(f"'{config.path}': column '{twice}' is named twice: a column has one meaning")
        return wanted


class Columns(NamedTuple):
    """Which column is what."""

    label: str
    """Empty for none."""
    values: list[str]
    are_lists: bool
    """Whether a cell is a whole series (or a channel of one) and not a number."""
    series: str
    time: str

    @property
    def needed(self) -> list[str]:
        """All that are read."""
        return [*filter(None, (self.label, self.series, self.time)), *self.values]


def choose_columns(schema: pa.Schema, is_number: Sequence[bool], wanted: Wanted, where: str) -> Columns:
    """Finds the columns that are meant.

    Args:
        schema: What the table has.
        is_number: Of each column, whether its cells are numbers.
        wanted: What the job says.
        where: The table, for messages.

    Raises:
        DataError: One does not exist or does not hold numbers, or there are no values.
    """
    names = schema.names
    keys = {"label_column": [wanted.label], "series_column": [wanted.series], "time_column": [wanted.time]}
    for key, asked in {**keys, "value_columns": wanted.values}.items():
        for name in asked:
            if name and name not in names:
                hint = closest(name, names)
                raise DataError(f"{where} has no column '{name}', only {_listed(names)}: set {key}.{hint}")
    usual = [name for name in names if name.lower() in USUAL_LABELS and name not in (*wanted.values, *wanted[2:])]
    label = wanted.label or next(iter(sorted(usual, key=lambda name: USUAL_LABELS.index(name.lower()))), "")
    numeric = [name for name, is_one in zip(names, is_number, strict=True) if is_one]
    lists = [field.name for field in schema if _is_list(field.type)]
    values = list(wanted.values) or _values(names, numeric, lists, {label, wanted.series, wanted.time}, where)
    kinds = {name in lists for name in values}
    odd = next((name for name in values if name not in lists and name not in numeric), None)
    if odd is not None:
        kind = schema.field(odd).type
        raise DataError(f"{where}: column '{odd}' holds {_called(kind)}, not numbers: leave it out of value_columns")
    if not values:
        raise DataError(f"{where} has no column of numbers besides the label: set value_columns")
    if kinds == {True, False}:
        raise DataError(f"{where}: some of {_listed(values)} hold lists and some numbers: set value_columns")
    if kinds == {True} and wanted.series:
        raise DataError(f"{where}: '{values[0]}' holds whole series: leave series_column out")
    return Columns(label, values, kinds == {True}, wanted.series, wanted.time)


def numbers_of_column(column: pa.ChunkedArray) -> tuple[np.ndarray, dict[int, str]]:
    """The cells of a column as numbers.

    Args:
        column: Of numbers, booleans or strings.

    Returns:
        float64 ``[rows]``, NaN where missing or no number, and the text of those that are none by row.
    """
    try:
        return _floats(column), {}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    values, bad = np.full(len(column), np.nan), {}
    for row, cell in enumerate(column.to_pylist()):
        try:
            values[row] = np.nan if cell is None else float(cell)
        except ValueError:
            bad[row] = shown(str(cell))
    return values, bad


def numbers_of_columns(table: pa.Table, names: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Columns of a table as numbers.

    Args:
        table: Their columns are of numbers, booleans or strings.
        names: The columns.

    Returns:
        float32 ``[rows, columns]``, NaN where missing, and what is wrong with rows in which a cell is no number.
    """
    bad: dict[int, str] = {}
    values = np.empty((len(table), len(names)), np.float32)
    with np.errstate(over="ignore"):  # told as an infinite value
        for place, name in enumerate(names):
            values[:, place], odd = numbers_of_column(table.column(name))
            for row, text in odd.items():
                bad.setdefault(row, f"'{name}' is '{text}'")
    return values, bad


def labels_of_column(column: pa.ChunkedArray) -> list[str | float | None]:
    """The cells of a label column: strings, numbers, None where missing or no text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    cells = column.to_pylist()
    texts = [cell.strip() if isinstance(cell, str) else cell for cell in cells]
    return [None if isinstance(cell, str) and (cell in MISSING or BROKEN in cell) else _label(cell) for cell in texts]


def is_number_type(kind: pa.DataType) -> bool:
    """Whether cells of this type are numbers."""
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def series_of_lists(cells: Sequence[pa.Array]) -> np.ndarray | str:
    """One series out of the cells of its row, each an array with one list.

    Args:
        cells: One ``[T]`` or ``[T, C]`` list of numbers; or one list ``[T]`` for every channel.

    Returns:
        float32 ``[T, C]``, or what is wrong with them.
    """
    channels = []
    for cell in cells:
        found = _matrix(cell)
        if isinstance(found, str):
            return found
        channels.append(found)
    if len({len(channel) for channel in channels}) > 1:
        return f"channels of {min(map(len, channels))} and of {max(map(len, channels))} steps"
    return np.concatenate(channels, axis=1)


def _values(names: Sequence[str], numeric: list[str], lists: list[str], taken: set[str], where: str) -> list[str]:
    """The columns of values where none is named."""
    free = [name for name in lists if name not in taken]
    if free:
        return free
    # Without a name there is usually the row number that pandas writes.
    chosen = [name for name in numeric if name not in taken and name]
    left_out = [name for name in names if name not in taken and name not in chosen]
    if left_out and chosen:
        logger.warning("%s: %s hold no numbers (or have no name) and are not read", where, _listed(left_out))
    return chosen


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.call_function("utf8_trim_whitespace", [column])
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return column.cast(pa.float64()).to_numpy()


def _label(cell: object) -> str | float | None:
    if isinstance(cell, float):
        return None if math.isnan(cell) else cell
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return str(cell).lower()
    return float(cell) if isinstance(cell, int) and abs(cell) < 1 << 53 else str(cell)


def _matrix(cell: pa.Array) -> np.ndarray | str:
    if isinstance(cell, pa.ExtensionArray):  # arrays of fixed shape, as `datasets` writes them
        cell = cell.storage
    if cell.null_count:
        return "it is null"
    inner, channels = cell.flatten(), 1
    if _is_list(inner.type):
        lengths = np.unique(pc.call_function("list_value_length", [inner]).to_numpy(zero_copy_only=False))
        if inner.null_count or len(lengths) > 1:
            return "steps with different numbers of channels"
        inner, channels = inner.flatten(), int(lengths[0]) if len(lengths) else 1
    values = inner.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):  # told as an infinite value
        return values.astype(np.float32).reshape(-1, max(channels, 1))


def _is_list(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    is_one = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_one and (is_number_type(kind.value_type) or _is_list(kind.value_type))


def _called(kind: pa.DataType) -> str:
    return "text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else str(kind)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:8])} and {len(names) - 8} more"
