"""Remote files of lines: an index made by one pass over them, then pages of lines."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flame.data.sources.line_files import IndexedFile, LineFiles
from flame.data.sources.line_index import decompress, local_chunks, write_index
from flame.data.sources.remote.pages import Pages
from flame.data.sources.remote.shape import block_of, page_documents
from flame.data.sources.remote.storage import RemoteStorage
from flame.data.sources.storage import FileInfo, LocalStorage
from flame.data.suffixes import is_compressed
from flame.tokenizer.cache import build_once, cache_folder


class Part(NamedTuple):
    """Neighbouring bytes of one file."""

    number: int
    """Of the file."""
    start: int
    data: bytes


class RemoteLines(LineFiles):
    """Documents that are lines of remote files; compressed ones lie decompressed in the cache.

    Args:
        name: What messages call this source.
        storage: Where the files lie.
        files: The indexed files.
        is_json: Whether a line is a JSON object, or the text itself.
        max_document_bytes: Longest document.
    """

    def __init__(
        self, name: str, storage: RemoteStorage, files: Sequence[IndexedFile], is_json: bool, max_document_bytes: int
    ):
        super().__init__(name, files, is_json, max_document_bytes)
        self._storage = storage
        size = sum(file.plain.size for file in files if not is_compressed(file.path))
        self._page_documents = page_documents(len(self), size)
        self.block = block_of(self._page_documents, size)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_pages"}

    def prefetch(self, indices: Sequence[int]) -> None:
        """Has the pages of these documents read by other threads."""
        pages = np.asarray(indices, np.int64) // self._page_documents
        self._pages.prefetch(dict.fromkeys(pages.tolist()))

    def read(self, indices: Sequence[int]) -> list[Any]:
        """Reads the documents with these numbers, in this order."""
        self.prefetch(indices)
        return super().read(indices)

    @functools.cached_property
    def _pages(self) -> Pages[list[Part]]:
        return Pages(self.name, self._load, lambda page: sum(stop - start for _, start, stop in self._ranges(page)))

    def _bytes(self, index: int, number: int, start: int, stop: int) -> bytes:
        if is_compressed(self._files[number].path):
            return LocalStorage().read(self._files[number].plain, start, stop)
        parts = self._pages.get(index // self._page_documents)
        part = next(part for part in parts if part.number == number and 0 <= start - part.start < len(part.data))
        return part.data[start - part.start : stop - part.start]

    def _load(self, page: int) -> list[Part]:
        return [
            Part(number, start, self._storage.read(self._files[number].plain, start, stop))
            for number, start, stop in self._ranges(page)
        ]

    def _ranges(self, page: int) -> list[tuple[int, int, int]]:
        """(file, start, stop) of the bytes of a page, without lines that are too long to be read."""
        first = page * self._page_documents
        last = min(first + self._page_documents, len(self))
        ranges = []
        for number in range(*self._files_of(first, last)):
            if is_compressed(self._files[number].path):
                continue
            begin = max(0, first - int(self._firsts[number]))
            end = min(last - int(self._firsts[number]), len(self._offsets[number]) - 1)
            offsets = np.asarray(self._offsets[number][begin : end + 1])
            too_long = np.flatnonzero(np.diff(offsets) > self._longest_line)
            for left, right in zip(np.append(0, too_long + 1), np.append(too_long, len(offsets) - 1), strict=True):
                if left < right:
                    ranges.append((number, int(offsets[left]), int(offsets[right])))
        return ranges

    def _files_of(self, first: int, last: int) -> tuple[int, int]:
        bounds = np.searchsorted(self._firsts, [first, last - 1], side="right")
        return int(bounds[0]) - 1, int(bounds[1])


def index_remote(storage: RemoteStorage, file: FileInfo) -> IndexedFile:
    """Finds the lines of a remote file by reading it once, unless that was done before.

    Raises:
        DataError: It cannot be read, or not be decompressed.
    """
    stem = cache_folder() / "lines" / file.key
    if not is_compressed(file.path):
        index = build_once(stem.with_suffix(".npy"), lambda draft: write_index(storage.chunks(file), draft))
        return IndexedFile(file.path, file, index)

    def unpack(draft: Path) -> None:
        with open(storage.local_path(file), "rb") as raw:
            decompress(file.path, raw, draft)

    plain = build_once(stem.with_suffix(".txt"), unpack)
    info = LocalStorage().info(str(plain))
    assert info is not None
    return IndexedFile(
        file.path, info, build_once(stem.with_suffix(".npy"), lambda draft: write_index(local_chunks(plain), draft))
    )
