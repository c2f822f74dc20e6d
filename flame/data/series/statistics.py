"""Mean and standard deviation of every channel of a source, for normalising what a model sees."""

from collections.abc import Iterable

import numpy as np

from flame.data.series.source import VALUES, SeriesSource
from flame.data.sources.records import BadRow
from flame.errors import DataError

_READ = 64  # series at once
_CONSTANT = 1e-7  # of the mean: a deviation that float32 values cannot have


def series_statistics(source: SeriesSource, most: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over all steps, without missing values and bad rows.

    Args:
        source: The series.
        most: Series to look at, at most; of larger sources, evenly spread ones.

    Returns:
        float64 ``[C]`` each, in the unit of the values. The deviation of a channel that never changes is 1, and the
        mean of one without any value 0.

    Raises:
        DataError: Not one of the series can be used.
    """
    count = min(len(source), max(most, 1))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(np.int64)
    seen = np.zeros(source.channels)
    mean = np.zeros(source.channels)
    squares = np.zeros(source.channels)  # summed squares of deviations from the mean
    used = 0
    for values in _values(source, chosen):
        used += 1
        # Chan et al.: merge count, mean and squares of two parts without losing digits.
        known = ~np.isnan(values)  # [T, C]
        own = known.sum(axis=0)
        own_mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(own, 1)
        own_squares = (np.where(known, values - own_mean, 0.0) ** 2).sum(axis=0)
        total = np.maximum(seen + own, 1)
        shift = own_mean - mean
        squares += own_squares + shift**2 * seen * own / total
        mean += shift * own / total
        seen += own
    if not used:
        raise DataError(
            f"none of {count:,} series of '{source.name}' can be used: look at them with data.on_bad_row = \"error\""
        )
    deviation = np.sqrt(squares / np.maximum(seen, 1))
    return mean, np.where(deviation > _CONSTANT * np.abs(mean), deviation, 1.0)


def _values(source: SeriesSource, chosen: np.ndarray) -> Iterable[np.ndarray]:
    for start in range(0, len(chosen), _READ):
        for record in source.read(chosen[start : start + _READ].tolist()):
            if not isinstance(record, BadRow):
                yield record[VALUES].astype(np.float64)
