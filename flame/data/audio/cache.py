"""A cache of features on disk, which any number of processes may read and write at once."""

import io
import os
import zlib
from pathlib import Path

import numpy as np

from flame.errors import DataError
from flame.files import beside, remove

_CHECKSUM = 4  # bytes of the CRC-32 at the end of a file


class FeatureCache:
    """Arrays by key; a file each, in 256 subfolders.

    A file appears under its name at once and ends with a checksum: what a killed process, a full disk or a failing one
    leaves is never taken for features. ``numpy.load`` reads the files too.

    Args:
        folder: Where they lie; made if it is not there.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()

    def get(self, key: str) -> np.ndarray | None:
        """What was put under this key; None if there is nothing, or it is damaged."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        content, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
        if len(checksum) < _CHECKSUM or zlib.crc32(content) != int.from_bytes(checksum, "little"):
            return None
        return np.load(io.BytesIO(content), allow_pickle=False)

    def put(self, key: str, array: np.ndarray) -> None:
        """Keeps an array, in place of an older one of this key.

        Args:
            key: Two or more letters and digits, such as ``Recording.key``.
            array: float16 or float32, of any shape.

        Raises:
            DataError: It cannot be written, such as on a full disk; then nothing is left of it.
        """
        target = self._path(key)
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(array), allow_pickle=False)
        data = content.getvalue()
        draft = beside(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Without waiting for the disk: after a loss of power the checksum tells what did not get there.
                draft.write_bytes(data + zlib.crc32(data).to_bytes(_CHECKSUM, "little"))
                os.replace(draft, target)
            finally:
                remove(draft)
        except OSError as error:
            raise DataError(
                f"cannot write features into {self.folder} ({error.strerror or error}): "
                "name a writable folder with room on its disk, or do without the cache"
            ) from error

    def _path(self, key: str) -> Path:
        if len(key) < 2 or not key.isalnum():
            raise DataError(f"'{key}' is no key of a feature cache: use two or more letters and digits")
        return self.folder / key[:2] / f"{key}.npy"
