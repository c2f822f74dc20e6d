"""Which columns of a source are read."""

from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from flame.data.sources.records import IDS, TEXT
from flame.errors import DataError, closest

_USUAL_TEXT_COLUMNS = ("text", "content")


class SourceConfig(Protocol):
    """One ``[[data.sources]]`` of a job."""

    path: str
    name: str
    split: str
    data_dir: str
    data_files: list[str]
    weight: float
    text_column: str
    layout: str
    format: str
    token_dtype: Any
    streaming: bool


def find_text_column(
    config: SourceConfig, columns: Sequence[str] | None, found: Sequence[str], where: str
) -> str | None:
    """Finds the source's text column; None if no text is needed.

    Where the encoder wants whole records, text has to be in all of them only if the job names its column: rows of text
    and conversations may stand side by side, and a conversation may have a side column of text.

    Args:
        config: What the job says about the source.
        columns: The record keys that are needed, ``"text"`` standing for the text column; None for all.
        found: The columns that there are.
        where: What has them, for messages.

    Raises:
        DataError: If it, or another column that is needed, does not exist.
    """
    for column in columns or ():
        if column != TEXT and column not in found:
            raise DataError(f"{where} has no column '{column}', only {', '.join(found)}.{closest(column, found)}")
    if config.text_column and config.text_column not in found:
        hint = closest(config.text_column, found)
        raise DataError(
            f"{where} has no column '{config.text_column}', only {', '.join(found)}: set text_column.{hint}"
        )
    if columns is None:
        return config.text_column or None
    if TEXT not in columns:
        return None
    usual = next((column for column in _USUAL_TEXT_COLUMNS if column in found), None)
    chosen = config.text_column or usual
    if chosen is None:
        raise DataError(f"{where} has no column 'text' or 'content', only {', '.join(found)}: set text_column to one")
    return chosen


def find_ids_column(config: SourceConfig, found: Sequence[str], where: str) -> str:
    """Finds the column of token ids of packed rows.

    Raises:
        DataError: There is none of that name.
    """
    column = config.text_column or IDS
    if column not in found:
        raise DataError(
            f"{where} has no column '{column}' of token ids, only {', '.join(found)}: set text_column to one."
            f"{closest(column, found)}"
        )
    return column


def check_text_type(schema: pa.Schema, column: str | None, where: str) -> None:
    """Checks that the text column holds strings.

    Raises:
        DataError: It does not.
    """
    if column is None:
        return
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"{where}: column '{column}' holds {kind}, not text: set text_column to a column of strings")


def check_ids_type(schema: pa.Schema, column: str, where: str) -> None:
    """Checks that a column holds lists of integers.

    Raises:
        DataError: It does not.
    """
    kind = schema.field(column).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not (is_list and pa.types.is_integer(kind.value_type)):
        raise DataError(
            f"{where}: column '{column}' holds {kind}, not lists of token ids: set text_column to a list<int32> column"
        )


def needed_columns(columns: Sequence[str] | None, text_column: str | None) -> list[str] | None:
    """The columns to load; None for all."""
    if columns is None:
        return None
    return [text_column if name == TEXT and text_column else name for name in columns]
