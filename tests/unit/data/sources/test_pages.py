"""Pages read ahead: within bounds, and never so many unused ones that reading ahead stops for good."""

import time

import pytest

from flame.data.sources.remote.pages import Pages

SIZE = 1 << 18  # a MiB holds four pages, two of them read ahead


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.setenv("FLAME_READ_AHEAD_MB", "1")
    loaded = []

    def load(page):
        loaded.append(page)
        return page

    pages = Pages("some", load, lambda page: SIZE)
    return pages, loaded


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    assert condition()


def test_pages_that_are_never_used_give_their_room_back(pages):
    pages, loaded = pages
    pages.prefetch([1000, 1001])
    wait_for(lambda: {1000, 1001} <= set(loaded))
    for page in range(200):
        pages.prefetch([page + 1])
        assert pages.get(page) == page
    assert not {1000, 1001} & set(pages._pages)
    pages.prefetch([500])
    wait_for(lambda: 500 in loaded)
    assert pages._ahead_bytes == len(pages._ahead) * SIZE and pages._bytes == len(pages._pages) * SIZE
    assert pages._bytes <= 4 * SIZE


def test_pages_that_are_used_in_any_near_order_are_read_once(pages):
    pages, loaded = pages
    order = [page + offset for page in range(0, 60, 6) for offset in (3, 0, 5, 1, 4, 2)]
    pages.prefetch(sorted(order))
    assert [pages.get(page) for page in order] == order
    assert len(loaded) == len(set(loaded)) == 60
