"""Images as series: row by row, pixel by pixel, or pixel by pixel in a fixed random order."""

import functools

import numpy as np

from flame.errors import DataError, closest

VIEWS = ("rows", "pixels", "permuted")
PERMUTATION_SEED = 0
"""``numpy.random.RandomState(0).permutation(H * W)`` is the order of ``permuted``; numpy never changes its numbers."""


class ImageView:
    """How a stored image becomes values: bytes ``[H, W]``, or ``[3, H, W]`` plane by plane.

    Args:
        name: One of ``VIEWS``.
        full: The byte that becomes 1.
    """

    def __init__(self, name: str, full: float):
        self.name, self._full = name, full

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """float32 ``[T, C]`` in [0, 1]: ``[H, W * planes]`` for rows, else ``[H * W, planes]``."""
        image = stored if stored.ndim == 2 else stored.transpose(1, 2, 0)  # [H, W] or [H, W, planes]
        values = image.reshape(self.length(stored.shape), -1).astype(np.float32) / np.float32(self._full)
        return values[permutation(len(values))] if self.name == "permuted" else values

    def length(self, shape: tuple[int, ...]) -> int:
        """Steps of an image stored with this shape."""
        return shape[-2] if self.name == "rows" else shape[-2] * shape[-1]

    def channels(self, shape: tuple[int, ...]) -> int:
        """Channels of an image stored with this shape."""
        planes = shape[0] if len(shape) == 3 else 1
        return planes * (shape[-1] if self.name == "rows" else 1)


@functools.lru_cache(maxsize=8)
def permutation(pixels: int) -> np.ndarray:
    """The fixed order of ``permuted``: int64 ``[pixels]``."""
    return np.random.RandomState(PERMUTATION_SEED).permutation(pixels)


def image_view(name: str, full: float, path: str, views: tuple[str, ...] = VIEWS) -> ImageView:
    """The view with this name, rows if it is empty.

    Raises:
        DataError: There is none.
    """
    if name and name not in views:
        raise DataError(
            f"'{path}': no view '{name}' of images: name is one of {', '.join(views)}.{closest(name, views)}"
        )
    return ImageView(name or "rows", full)
