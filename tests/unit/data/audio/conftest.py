"""A cache for every test."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("flame_cache")
    monkeypatch.setenv("FLAME_CACHE", str(cache))
    return cache
