"""Small sources of series, and what is read from them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flame.config import Source
from flame.data.series.open import open_series
from flame.data.series.source import SeriesSource
from flame.data.sources.records import BadRow

TS = """# a comment
@problemName Two
@timeStamps false
@univariate false
@dimensions 2
@classLabel true b a
@data
1,2,3:4,5,6:a
1,?:NaN,4:b
"""


def opened(path: Path | str, **keys) -> SeriesSource:
    """A source with these keys in the job."""
    return open_series(Source(str(path), **keys))


def written(path: Path, text: str) -> Path:
    """A file of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def series_of(source: SeriesSource) -> list[list]:
    """The values of all series as nested lists, those that are missing as None."""
    return [_as_lists(record["values"]) for record in good(source)]


def labels_of(source: SeriesSource) -> list:
    """The labels of all series."""
    return [record["label"] for record in good(source)]


def good(source: SeriesSource, indices: Sequence[int] | None = None) -> list[dict]:
    """Records (all if no indices are given), of which none may be bad."""
    records = source.read(range(len(source)) if indices is None else indices)
    bad = [str(record) for record in records if isinstance(record, BadRow)]
    assert not bad
    return records  # pyright: ignore[reportReturnType]


def faults(source: SeriesSource) -> list[str]:
    """What is wrong with the bad ones, the name of the folder left out."""
    bad = [record for record in source.read(range(len(source))) if isinstance(record, BadRow)]
    return [str(record).rpartition("/")[2] for record in bad]


def _as_lists(values: np.ndarray) -> list:
    assert values.dtype == np.float32 and values.ndim == 2
    return [[None if np.isnan(value) else round(float(value), 4) for value in step] for step in values]
