"""Unpickling the batches of CIFAR's python version, and nothing else: a pickle could run any code."""

import codecs
import pickle
from typing import Any

import numpy as np

from flame.data.series.text_lines import one_line

_PIXELS = 3072
_RECONSTRUCT = np.empty(1).__reduce__()[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}
"""The only things that a pickle may name: what arrays, bytes and numbers are made of."""


class NoBatchError(ValueError):
    """A file that is no batch, a damaged one, or one that wants to run code."""


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Admits what batches consist of."""
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is not admitted")
        return _ADMITTED[module, name]


def load_batch(stored: Any) -> tuple[np.ndarray, np.ndarray]:
    """Unpickles a batch.

    Args:
        stored: An open file.

    Returns:
        Pixels, uint8 ``[images, 3072]`` plane by plane, and labels, uint8 ``[images]``.

    Raises:
        NoBatchError: It is damaged, holds something else, or wants to run code.
    """
    try:
        return _pixels_and_labels(_BatchUnpickler(stored, encoding="bytes").load())
    except Exception as error:  # a damaged pickle raises anything
        raise NoBatchError(one_line(error)) from error


def _pixels_and_labels(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(batch, dict):
        raise ValueError(f"it holds {type(batch).__name__}, not a dict")
    named = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    pixels, labels = np.asarray(named["data"]), np.asarray(named["labels"], np.int64)
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise ValueError(f"its data are {pixels.dtype} {list(pixels.shape)}, not uint8 [images, {_PIXELS}]")
    if labels.shape != pixels.shape[:1] or not len(labels) or labels.min() < 0 or labels.max() > 255:
        raise ValueError(f"its labels do not fit its {len(pixels):,} images")
    return pixels, labels.astype(np.uint8)
