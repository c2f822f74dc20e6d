"""How remote documents are grouped: into pages, which are read at once, and blocks, which lie together in the order.

Both follow from the data alone, so that the order of a job does not depend on the machine.
"""

PAGE_BYTES = 1 << 20
SMALL_SOURCE = 1 << 26
"""Bytes of a source that is soon in memory as a whole: its documents need no blocks."""


def page_documents(documents: int, size: int) -> int:
    """How many neighbouring documents make up a page of a MiB or so, or one if a document is larger."""
    return max(1, PAGE_BYTES * documents // max(size, 1))


def block_of(page: int, size: int) -> int:
    """Documents of a block, from those of a page and the bytes of the source."""
    return page if size > SMALL_SOURCE else 1
