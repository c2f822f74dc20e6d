"""Remote files of token ids, read by pages."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from flame.data.sources.remote.pages import Pages
from flame.data.sources.remote.shape import block_of, page_documents
from flame.data.sources.remote.storage import RemoteStorage
from flame.data.sources.token_files import TokenFile
from flame.data.sources.token_shards import TokenShards


class RemoteTokens(TokenShards):
    """Documents of remote token files; only their indexes are fetched.

    Args:
        name: What messages call this source.
        storage: Where the files lie.
        files: The files, at least one.
        vocab_size: Ids at or above it are errors; 0 if not known.
    """

    def __init__(self, name: str, storage: RemoteStorage, files: Sequence[TokenFile], vocab_size: int):
        super().__init__(name, files, vocab_size)
        self._storage = storage
        size = sum(file.info.size for file in files)
        self._page_documents = page_documents(len(self), size)
        self.block = block_of(self._page_documents, size)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_pages"}

    def prefetch(self, indices: Sequence[int]) -> None:
        """Has the pages of these documents read by other threads."""
        pages = np.asarray(indices, np.int64) // self._page_documents
        self._pages.prefetch(dict.fromkeys(pages.tolist()))

    def read_tokens(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads documents without an object for each; see ``TokenShards``."""
        self.prefetch(indices)  # pyright: ignore[reportArgumentType]
        return super().read_tokens(indices)

    @functools.cached_property
    def _pages(self) -> Pages[list[tuple[int, np.ndarray]]]:
        return Pages(self.name, self._load, self._size)

    def _slice(self, document: int, number: int, start: int, size: int) -> np.ndarray:
        parts: list[np.ndarray] = []
        page = document // self._page_documents
        while size:
            first, ids = self._part(page, number)
            part = ids[start - first : start - first + size]
            parts.append(part)
            start, size, page = start + len(part), size - len(part), page + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def _part(self, page: int, number: int) -> tuple[int, np.ndarray]:
        """The first token of a page's part of a file, and the ids of that part."""
        first = self._ranges(page)[0][0]
        return self._pages.get(page)[number - first]

    def _load(self, page: int) -> list[tuple[int, np.ndarray]]:
        parts = []
        for number, start, stop in self._ranges(page):
            file = self._files[number]
            data = self._storage.read(file.info, file.byte(start), file.byte(stop))
            parts.append((start, np.frombuffer(data, file.type)))
        return parts

    def _size(self, page: int) -> int:
        return sum((stop - start) * self._files[number].type.itemsize for number, start, stop in self._ranges(page))

    def _ranges(self, page: int) -> list[tuple[int, int, int]]:
        """(file, first token, last token + 1) of the files of a page, in order."""
        first = page * self._page_documents
        last = min(first + self._page_documents, len(self))
        bounds = np.searchsorted(self._firsts, [first, last - 1], side="right")
        ranges = []
        for number in range(int(bounds[0]) - 1, int(bounds[1])):
            offsets = self._files[number].offsets
            begin = max(0, first - int(self._firsts[number]))
            end = min(last - int(self._firsts[number]), len(offsets) - 1)
            ranges.append((number, int(offsets[begin]), int(offsets[end])))
        return ranges

    def _check_file(self, number: int) -> None:
        """Does nothing: the storage looks at its files itself."""
