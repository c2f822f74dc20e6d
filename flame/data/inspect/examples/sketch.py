"""Values over time as a few lines of text."""

import numpy as np

WIDTH = 64
"""Columns of a sketch, at most."""

_HEIGHT = 8  # lines of a sketch of many channels, at most
_FEW = 4  # channels that have a line each
_BARS = "▁▂▃▄▅▆▇█"
_SHADES = " ░▒▓█"


def sketch(values: np.ndarray) -> list[str]:
    """Draws ``[T, C]``, time from left to right: few channels as a curve each, many as shades, the last on top.

    What does not fit is averaged. The range of all values is that of the characters.
    """
    values = np.asarray(values, np.float64)
    columns = _averaged(values, WIDTH)
    if values.shape[1] <= _FEW:
        return ["".join(_BARS[level] for level in levels) for levels in _levels(columns, len(_BARS)).T.tolist()]
    lines = _averaged(columns.T, _HEIGHT)  # [lines, columns]
    return ["".join(_SHADES[level] for level in levels) for levels in _levels(lines, len(_SHADES))[::-1].tolist()]


def _averaged(values: np.ndarray, most: int) -> np.ndarray:
    """``[n, m]`` to ``[min(n, most), m]``."""
    if len(values) <= most:
        return values
    starts = np.arange(most) * len(values) // most
    return np.add.reduceat(values, starts) / np.diff(starts, append=len(values))[:, None]


def _levels(values: np.ndarray, count: int) -> np.ndarray:
    """Values as levels 0 to ``count - 1``."""
    low, high = values.min(), values.max()
    return ((values - low) / (high - low or 1.0) * (count - 1)).round().astype(int)
