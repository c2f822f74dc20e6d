"""Series in hub datasets and saved ones: a column of images or of lists, and a label."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flame.config.corpora import Source
from flame.data.series.labels import NO_LABELS, LabelSummary, summarize
from flame.data.series.source import Fault, SeriesPart
from flame.data.series.tables import (
    Columns,
    Wanted,
    choose_columns,
    is_number_type,
    labels_of_column,
    numbers_of_columns,
    series_of_lists,
)
from flame.data.series.ucr_files import without_tail
from flame.data.sources.arrow_tables import ArrowTable
from flame.data.sources.tables import is_saved_dataset, open_hub, open_saved
from flame.errors import need

_GREY = ("1", "L", "LA", "La")
_FULL, _FULL_16 = 255, 65535
_PROBED = 100  # rows that are tried for a first series


def open_hub_series(config: Source) -> list[SeriesPart]:
    """Opens a dataset of the hub, downloaded once, or one that ``save_to_disk`` wrote.

    Raises:
        DataError: It is not there, cannot be loaded, or lacks a column.
        ConfigError: It holds images and Pillow is not installed.
    """
    opened = (open_saved if is_saved_dataset(Path(config.path).expanduser()) else open_hub)(config, None, 0)
    assert isinstance(opened, ArrowTable)
    return [TablePart(opened, Wanted.of(config), config.path)]


class TablePart:
    """Series that are rows of a memory-mapped table of the ``datasets`` library.

    Args:
        table: The table.
        wanted: What the job says of the columns.
        name: What messages call it.

    Raises:
        DataError: It lacks a column.
        ConfigError: It holds images and Pillow is not installed.
    """

    def __init__(self, table: ArrowTable, wanted: Wanted, name: str):
        self.name = name
        features = table.dataset.features
        self._image = _image_column(features, wanted)
        if self._image:
            need("series", "PIL")
        self._columns = _columns(features, wanted, self._image, name)
        self._class_names = getattr(features.get(self._columns.label), "names", None)
        self._table = table.with_columns(self._columns.needed)
        self.summary = self._labels()[0] if self._columns.label else NO_LABELS
        first = next((values for values in self.read(range(min(_PROBED, len(table)))) if _is_series(values)), None)
        self.usable = len(table) if first is not None else 0
        self.channels = 1 if first is None else first.shape[1]  # pyright: ignore[reportAttributeAccessIssue]

    def __len__(self) -> int:
        return len(self._table)

    def read(self, rows: Sequence[int]) -> list[np.ndarray | Fault]:
        """Values, float32 ``[T, C]``, of the rows with these numbers, or what is wrong with them."""
        if not len(rows):
            return []
        table = self._rows(rows)
        if self._image:
            return [_pixels(cell) for cell in table.column(self._image).to_pylist()]
        if self._columns.are_lists:
            cells = [table.column(name).combine_chunks() for name in self._columns.values]
            found = [series_of_lists([cell.slice(row, 1) for cell in cells]) for row in range(len(rows))]
            return [Fault("not a series", values) if isinstance(values, str) else values for values in found]
        values, _ = numbers_of_columns(table, self._columns.values)
        return [without_tail(own)[:, None] for own in values]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Steps, float64 ``[len(rows)]``; 0 for faulty ones. Of images, only the header is read."""
        if not len(rows):
            return np.zeros(0)
        if self._image:
            return np.array([_pixel_count(cell) for cell in self._rows(rows).column(self._image).to_pylist()], float)
        if self._columns.are_lists:
            column = self._rows(rows).column(self._columns.values[0])
            if isinstance(column.type, pa.BaseExtensionType):
                column = pa.chunked_array([chunk.storage for chunk in column.chunks])
            return pc.call_function("list_value_length", [column]).fill_null(0).to_numpy().astype(np.float64)
        return np.array([len(values) for values in self.read(rows.tolist())], float)

    def labels(self) -> np.ndarray:
        """Label of every row, as ``summary`` says."""
        return self._labels()[1] if self._columns.label else np.full(len(self), -1)

    def where(self, row: int) -> str:
        """Dataset and row."""
        return self._table.where(row)

    def _rows(self, rows: Sequence[int] | np.ndarray) -> pa.Table:
        return self._table.dataset[list(rows)]  # pyright: ignore[reportReturnType]

    def _labels(self) -> tuple[LabelSummary, np.ndarray]:
        only = self._table.dataset.select_columns([self._columns.label])
        column: pa.ChunkedArray = only[:].column(0)  # pyright: ignore[reportAttributeAccessIssue]
        if self._class_names is None:
            return summarize(labels_of_column(column))
        codes = column.cast(pa.int64()).fill_null(-1).to_numpy()
        return LabelSummary("names", tuple(self._class_names)), codes


def _image_column(features: datasets.Features, wanted: Wanted) -> str:
    """The column of images that is meant; empty if series are something else."""
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    named = [name for name in wanted.values if name in images]
    return next(iter(named or ([] if wanted.values else images)), "")


def _columns(features: datasets.Features, wanted: Wanted, image: str, name: str) -> Columns:
    schema = features.arrow_schema
    if image:
        others = [
            field for field in schema if field.name == image or not isinstance(features[field.name], datasets.Image)
        ]
        # An image counts as numbers, so that label and names are found as in any other table.
        return choose_columns(
            pa.schema(others), [field.name == image for field in others], wanted._replace(values=(image,)), name
        )
    return choose_columns(schema, [is_number_type(field.type) for field in schema], wanted, name)


def _is_series(values: np.ndarray | Fault) -> bool:
    return not isinstance(values, Fault) and len(values) > 0


def _pixels(cell: dict[str, Any] | None) -> np.ndarray | Fault:
    """An image pixel by pixel, in [0, 1]: float32 ``[H * W, 1]`` if it is grey, else ``[H * W, 3]``."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(_content(cell))
        if image.mode.startswith("I;16"):
            values = np.asarray(image).astype(np.float32) / _FULL_16
        else:
            values = np.asarray(image.convert("L" if image.mode in _GREY else "RGB")).astype(np.float32) / _FULL
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Fault("unreadable image", str(error))
    return values.reshape(values.shape[0] * values.shape[1], -1)


def _pixel_count(cell: dict[str, Any] | None) -> int:
    from PIL import Image, UnidentifiedImageError

    try:
        width, height = Image.open(_content(cell)).size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
    return width * height


def _content(cell: dict[str, Any] | None) -> Any:
    if not cell:
        raise ValueError("it is null")
    return io.BytesIO(cell["bytes"]) if cell.get("bytes") else cell["path"]
