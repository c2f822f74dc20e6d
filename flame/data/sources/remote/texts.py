"""Remote text files: every file a document, or a lone one cut into documents."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flame.data.sources.records import Record, tail_to_leave
from flame.data.sources.remote.pages import Pages
from flame.data.sources.remote.shape import block_of, page_documents
from flame.data.sources.remote.storage import RemoteStorage
from flame.data.sources.storage import FileInfo
from flame.data.sources.text_files import CUT_WINDOW, longest_span, text_record
from flame.tokenizer.cache import build_once, cache_folder


class RemoteTexts:
    """Documents that are remote text files, or parts of them.

    Args:
        name: What messages call this source.
        storage: Where the files lie.
        files: The files.
        max_document_bytes: Longest document.
    """

    tokenized = False

    def __init__(self, name: str, storage: RemoteStorage, files: Sequence[FileInfo], max_document_bytes: int):
        self.name = name
        self._storage = storage
        longest = longest_span(len(files), max_document_bytes)
        self._files = list(files)
        cuts = [_cuts(storage, file, longest) for file in files]
        numbers = np.repeat(np.arange(len(files)), [len(cut) - 1 for cut in cuts])
        # [documents, 3]: file, first byte, last byte + 1
        self._spans = np.stack(
            [numbers, np.concatenate([cut[:-1] for cut in cuts]), np.concatenate([cut[1:] for cut in cuts])], axis=1
        )
        size = sum(file.size for file in files)
        # Files are read one by one, and parts of files by pages.
        self._page_documents = 1 if len(files) == len(self._spans) else page_documents(len(self), size)
        self.block = block_of(self._page_documents, size)

    def __len__(self) -> int:
        return len(self._spans)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pages"}

    def prefetch(self, indices: Sequence[int]) -> None:
        """Has the pages of these documents read by other threads."""
        pages = np.asarray(indices, np.int64) // self._page_documents
        self._pages.prefetch(dict.fromkeys(pages.tolist()))

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the documents with these numbers, in this order."""
        self.prefetch(indices)
        return [self._read_one(index) for index in indices]

    def where(self, index: int) -> str:
        """File, and bytes if it is not the whole or the beginning."""
        number, start, stop = self._spans[index].tolist()
        return f"{self._files[number].path}, bytes {start}-{stop}" if start else self._files[number].path

    def _read_one(self, index: int) -> Record:
        page, place = divmod(index, self._page_documents)
        return text_record(self._pages.get(page)[place], int(self._spans[index, 1]), self.where(index))

    @functools.cached_property
    def _pages(self) -> Pages[list[bytes]]:
        return Pages(self.name, self._load, lambda page: int(np.diff(self._page(page)[:, 1:]).sum()))

    def _page(self, page: int) -> np.ndarray:
        return self._spans[page * self._page_documents : (page + 1) * self._page_documents]

    def _load(self, page: int) -> list[bytes]:
        spans = self._page(page)
        documents = []
        for number in np.unique(spans[:, 0]):
            own = spans[spans[:, 0] == number]
            first = int(own[0, 1])
            data = self._storage.read(self._files[number], first, int(own[-1, 2]))
            documents += [data[start - first : stop - first] for _, start, stop in own.tolist()]
        return documents


def _cuts(storage: RemoteStorage, file: FileInfo, longest: int) -> np.ndarray:
    """Where documents of a file begin, and its end; a longer file is read once to find them."""
    if file.size <= longest:
        return np.array([0, file.size])

    def write(draft: Path) -> None:
        cuts, rest = [0], b""
        for chunk in storage.chunks(file):
            rest += chunk
            begin = 0
            while len(rest) - begin > longest:
                size = longest - tail_to_leave(rest[begin : begin + longest][-CUT_WINDOW:])
                begin += size
                cuts.append(cuts[-1] + size)
            rest = rest[begin:]
        with open(draft, "wb") as target:
            np.save(target, np.array([*cuts, file.size]))

    return np.load(build_once(cache_folder() / "cuts" / f"{file.key}_{longest}.npy", write))
