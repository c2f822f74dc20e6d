"""Documents that are slices of files of token ids, mapped into memory."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from flame.data.shards.manifest import DTYPES
from flame.data.sources.records import IDS, Record
from flame.data.sources.storage import check_unchanged
from flame.data.sources.token_files import TokenFile, bad_id
from flame.errors import DataError

_BLOCK_TOKENS = 1 << 16
_LEAST_BLOCKS = 4096
_ALL_IDS = 1 << 31


class TokenShards:
    """Documents of token files.

    A block is some 64K tokens of neighbouring documents, fewer in a small corpus: it is read as one slice.

    Args:
        name: What messages call this source.
        files: The files, at least one.
        vocab_size: Ids at or above it are errors; 0 if not known.
    """

    tokenized = True

    def __init__(self, name: str, files: Sequence[TokenFile], vocab_size: int):
        self.name = name
        self._files = list(files)
        self._limit = vocab_size or _ALL_IDS
        # [files + 1]: the number of the first document of every file, and of all
        self._firsts = np.cumsum([0] + [len(file.offsets) - 1 for file in files])
        self.block = block_size(len(self), sum(file.tokens for file in files), _BLOCK_TOKENS)

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_data"}

    def prefetch(self, indices: Sequence[int]) -> None:
        """Does nothing: the operating system reads ahead."""

    def where(self, index: int) -> str:
        """File and document."""
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return f"{self._files[number].info.path}, document {index - int(self._firsts[number]) + 1}"

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the documents with these numbers, in this order."""
        tokens, lengths = self.read_tokens(indices)
        stops = np.cumsum(lengths)
        return [{IDS: tokens[stop - length : stop]} for stop, length in zip(stops, lengths, strict=True)]

    def read_tokens(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads documents without an object for each.

        Args:
            indices: Their numbers; those of one file in rising order are copied as one slice.

        Returns:
            int32 ``[tokens]``, their ids one after the other; int64 ``[len(indices)]``, their lengths.

        Raises:
            DataError: An id is outside the vocabulary, or a file changed since it was opened.
        """
        wanted = np.asarray(indices, np.int64)
        if not len(wanted):
            return np.empty(0, np.int32), np.empty(0, np.int64)
        numbers = np.searchsorted(self._firsts, wanted, side="right") - 1
        starts = np.empty(len(wanted), np.int64)
        stops = np.empty(len(wanted), np.int64)
        for number in np.unique(numbers) if numbers.min() != numbers.max() else numbers[:1]:
            inside = numbers == number
            rows = wanted[inside] - self._firsts[number]
            offsets = self._files[number].offsets
            starts[inside], stops[inside] = offsets[rows], offsets[rows + 1]
            self._check_file(int(number))
        lengths = stops - starts
        return self._gather(wanted, numbers, starts, lengths), lengths

    def _gather(self, wanted: np.ndarray, numbers: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Copies documents, each run of neighbours as one slice."""
        borders = np.flatnonzero((np.diff(wanted) != 1) | (np.diff(numbers) != 0)) + 1
        firsts = np.append(0, borders)
        sizes = np.add.reduceat(lengths, firsts)
        tokens = np.empty(int(sizes.sum()), np.int32)
        place = 0
        for first, size in zip(firsts.tolist(), sizes.tolist(), strict=True):
            tokens[place : place + size] = self._slice(
                int(wanted[first]), int(numbers[first]), int(starts[first]), size
            )
            place += size
        # As unsigned, ids that do not fit int32 are large instead of negative.
        if len(tokens) and int(tokens.view(np.uint32).max()) >= self._limit:
            raise self._bad_id(tokens, wanted, numbers, starts, lengths)
        return tokens

    def _bad_id(
        self, tokens: np.ndarray, wanted: np.ndarray, numbers: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> DataError:
        place = int(np.flatnonzero(tokens.view(np.uint32) >= self._limit)[0])
        stops = np.cumsum(lengths)
        document = int(np.searchsorted(stops, place, side="right"))
        token = int(starts[document]) + place - int(stops[document] - lengths[document])
        return bad_id(self._files[numbers[document]], token, int(tokens.view(np.uint32)[place]), self._limit)

    def _slice(self, document: int, number: int, start: int, size: int) -> np.ndarray:
        """Ids of a run of neighbouring documents, of the type of their file."""
        return self._data[number][start : start + size]

    def _check_file(self, number: int) -> None:
        # A mapped file that was cut off since would end the process by a signal.
        info = self._files[number].info
        try:
            check_unchanged(info, os.stat(info.path))
        except OSError as error:
            raise DataError(f"{info.path} cannot be read any more ({error.strerror})") from error

    @functools.cached_property
    def _data(self) -> list[np.ndarray]:
        return [
            # A plain array: slices of the other kind cost a microsecond each.
            np.asarray(np.memmap(file.info.path, DTYPES[file.dtype], "r", offset=file.start, shape=(file.tokens,)))
            if file.tokens
            else np.empty(0, DTYPES[file.dtype])
            for file in self._files
        ]


def block_size(documents: int, size: int, block: int) -> int:
    """How many neighbouring documents make up some ``block`` of ``size``, while there are enough blocks to shuffle."""
    return max(1, min(block * documents // max(size, 1), documents // _LEAST_BLOCKS))
