"""The feature cache: what was put, or nothing, whatever happens to its files."""

import errno
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from flame.data.audio.cache import FeatureCache
from flame.errors import DataError

KEY = "ab12"


def array(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).standard_normal((30, 8)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_was_put_comes_back(tmp_path, dtype):
    cache = FeatureCache(tmp_path / "cache")
    assert cache.get(KEY) is None
    cache.put(KEY, array(dtype))
    found = FeatureCache(tmp_path / "cache").get(KEY)
    assert found is not None and found.dtype == dtype
    np.testing.assert_array_equal(found, array(dtype))
    np.testing.assert_array_equal(np.load(tmp_path / "cache" / "ab" / "ab12.npy"), found)
    cache.put(KEY, array(dtype)[:5])
    assert cache.get(KEY).shape == (5, 8)  # pyright: ignore[reportOptionalMemberAccess]


def test_damaged_files_are_made_again(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.put(KEY, array())
    path = tmp_path / "ab" / "ab12.npy"
    whole = path.read_bytes()
    damages = [b"", b"xyz", whole[:-1], whole[: len(whole) // 2], whole[:200] + b"\1" + whole[201:], bytes(len(whole))]
    for damage in damages:
        path.write_bytes(damage)
        assert cache.get(KEY) is None
        cache.put(KEY, array())
        assert path.read_bytes() == whole


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    cache = FeatureCache(tmp_path)
    with pytest.raises(DataError, match="No space left on device.: name a writable folder"):
        cache.put(KEY, array())
    assert not list((tmp_path / "ab").iterdir()) and cache.get(KEY) is None


def test_a_folder_that_cannot_be_made_and_a_wrong_key_are_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write features"):
        FeatureCache(tmp_path / "file").put(KEY, array())
    for key in ("a", "../../etc", ""):
        with pytest.raises(DataError, match="is no key"):
            FeatureCache(tmp_path).get(key)


def _put_and_get(folder: str, seed: int) -> bool:
    cache = FeatureCache(folder)
    for number in range(50):
        expected = np.full((200, 10), number, np.float32)
        cache.put(f"k{number % 5}", expected + seed)
        found = cache.get(f"k{number % 5}")
        if found is None or found.shape != (200, 10) or not (found == found[0, 0]).all():
            return False
    return True


def test_processes_that_write_the_same_keys_never_read_half(tmp_path):
    context = multiprocessing.get_context("forkserver")
    with context.Pool(2) as pool:
        assert all(pool.starmap(_put_and_get, [(str(tmp_path), seed) for seed in range(4)]))
