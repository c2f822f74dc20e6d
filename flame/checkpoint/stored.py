"""The tensors of a DCP step on disk, read row by row without loading the step.

``.metadata`` says in which files the blocks of each tensor lie. A block is a small zip archive that ``torch.save``
made, with the tensor's bytes in one piece inside it; so any rows of it can be read with one call.
"""

import os
import pickle
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from flame.checkpoint.layout import DCP_METADATA, MANIFEST, DamagedStepError, in_use
from flame.checkpoint.safetensors_file import as_bytes, read_into
from flame.checkpoint.storage import checksum_of, compare

# What torchtitan keeps beside the model at the top of a step.
TRAINING_STATES = ("optimizer", "lr_scheduler", "dataloader", "train_state")


@dataclass(frozen=True)
class Block:
    """A part of a tensor that one rank wrote.

    Args:
        record: DCP's storage record: file, offset and length of the archive.
        origin: Where the block begins in the tensor.
        shape: Sizes of the block.
        data_offset: First byte of its data in the file; -1 where its rows are not in order there.
    """

    record: Any
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    data_offset: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a step, as the blocks that make it up.

    Args:
        dtype: Element type.
        shape: Sizes; a scalar is stored as one element.
        blocks: Parts that cover it without overlap.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first dimension."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    def flat(self) -> "StoredTensor":
        """Returns the same data as a vector, if its blocks divide the first dimension only; else itself."""
        rest = self.shape[1:]
        if any(block.shape[1:] != rest or block.data_offset < 0 for block in self.blocks):
            return self
        width = prod(rest)
        blocks = (replace(b, origin=(b.origin[0] * width,), shape=(b.shape[0] * width,)) for b in self.blocks)
        return StoredTensor(self.dtype, (self.shape[0] * width,), tuple(blocks))


def read_metadata(folder: Path) -> Metadata:
    """Returns DCP's metadata of a step.

    Raises:
        DamagedStepError: It is absent or cannot be read.
    """
    try:
        with open(folder / DCP_METADATA, "rb") as file:
            return pickle.load(file)
    except FileNotFoundError:
        raise DamagedStepError(f"{folder} holds no {DCP_METADATA}: it is not a step of DCP") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, IndexError, ImportError) as error:
        raise DamagedStepError(f"{folder / DCP_METADATA} cannot be read: {error!r}") from None


def model_keys(metadata: Metadata) -> dict[str, str]:
    """Returns parameter name -> key in the step, for the tensors of the model alone.

    torchtitan keeps the model's names at the top; upstream flame nests them under ``model``. Both give keys that
    begin with ``model.``, so the paths that DCP's planner recorded decide.
    """
    paths = metadata.planner_data or {}
    names: dict[str, str] = {}
    for key, entry in metadata.state_dict_metadata.items():
        path = paths.get(key, (key,))
        training_state = path[0] in TRAINING_STATES or key.split(".")[0] in TRAINING_STATES
        if training_state or not isinstance(entry, TensorStorageMetadata):
            continue
        if len(path) == 1:
            names[key] = key
        elif len(path) == 2 and path[0] == "model":
            names[path[1]] = key
    return names


class StoredStep:
    """The model of a step, open for reading by any number of threads.

    Args:
        folder: A step folder of DCP.

    Raises:
        DamagedStepError: Its metadata cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metadata = read_metadata(folder)
        self._keys = model_keys(self._metadata)
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        self._open_files = ExitStack()

    def __enter__(self) -> "StoredStep":
        if (self.folder / MANIFEST).is_file():
            self._open_files.enter_context(in_use(self.folder))
        return self

    def __exit__(self, *error: object) -> None:
        self._open_files.close()

    def names(self) -> list[str]:
        """Returns the names of the model's tensors."""
        return list(self._keys)

    def size(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Returns element type and shape of a tensor."""
        entry = self._metadata.state_dict_metadata[self._keys[name]]
        assert isinstance(entry, TensorStorageMetadata)
        return entry.properties.dtype, tuple(entry.size)

    def tensor(self, name: str) -> StoredTensor:
        """Finds the blocks of a tensor and compares them with their checksums.

        Raises:
            DamagedStepError: A block is missing or is not what was written.
        """
        key = self._keys[name]
        entry = self._metadata.state_dict_metadata[key]
        assert isinstance(entry, TensorStorageMetadata)
        blocks = []
        for chunk in entry.chunks:
            if prod(chunk.sizes) > 0:
                record = self._metadata.storage_data[MetadataIndex(key, chunk.offsets)]
                origin, shape = tuple(chunk.offsets) or (0,), tuple(chunk.sizes) or (1,)
                blocks.append(Block(record, origin, shape, self._locate(record)))
        shape = tuple(entry.size) or (1,)
        if sum(prod(block.shape) for block in blocks) != prod(shape):
            raise DamagedStepError(f"{self.folder} does not hold all of {name}: save it again")
        return StoredTensor(entry.properties.dtype, shape, tuple(blocks))

    def read_rows(self, tensor: StoredTensor, start: int, rows: Tensor) -> None:
        """Reads rows of a tensor from ``start`` on.

        Args:
            tensor: One of this step.
            start: The first row to read.
            rows: Filled, ``[count, *rest]`` in the tensor's stored type; contiguous.
        """
        stop = start + rows.shape[0]
        for block in tensor.blocks:
            first, last = max(start, block.origin[0]), min(stop, block.origin[0] + block.shape[0])
            if first < last:
                place = [slice(first - start, last - start)]
                place += [slice(o, o + s) for o, s in zip(block.origin[1:], block.shape[1:], strict=True)]
                self._read_block_rows(block, first - block.origin[0], rows[tuple(place)])

    def _read_block_rows(self, block: Block, first: int, target: Tensor) -> None:
        descriptor = self._open(block.record.relative_path)
        if block.data_offset < 0:
            with open(self.folder / block.record.relative_path, "rb") as file:
                view = cast(IO[bytes], _create_file_view(file, block.record.offset, block.record.length))
                target.copy_(torch.load(view, weights_only=True)[first : first + target.shape[0]])
            return
        row_bytes = prod(block.shape[1:]) * target.dtype.itemsize
        source = target if target.is_contiguous() else torch.empty(target.shape, dtype=target.dtype)
        read_into(descriptor, as_bytes(source), block.data_offset + first * row_bytes)
        if source is not target:
            target.copy_(source)

    def _locate(self, record: Any) -> int:
        """Checks a record and returns where its tensor's bytes begin, -1 if they are not in row order."""
        descriptor = self._open(record.relative_path)
        if os.fstat(descriptor).st_size < record.offset + record.length:
            raise DamagedStepError(f"{self.folder / record.relative_path} is truncated")
        compare(record, record.length, checksum_of(descriptor, record.offset, record.length), self.folder)
        return data_offset(self.folder / record.relative_path, record.offset, record.length)

    def _open(self, name: str) -> int:
        with self._lock:
            if name not in self._descriptors:
                try:
                    descriptor = os.open(self.folder / name, os.O_RDONLY)
                except OSError as error:
                    raise DamagedStepError(f"{self.folder / name} cannot be read: {error.strerror}") from None
                self._descriptors[name] = descriptor
                self._open_files.callback(os.close, descriptor)
            return self._descriptors[name]


def data_offset(path: Path, offset: int, length: int) -> int:
    """Returns where the bytes of a tensor that ``torch.save`` wrote begin in a file.

    Args:
        path: The file.
        offset: First byte of the archive that ``torch.save`` wrote.
        length: Bytes of that archive.

    Returns:
        The position in the file, or -1 if the rows of the tensor are not in order there.
    """
    with open(path, "rb") as file:
        view = cast(IO[bytes], _create_file_view(file, offset, length))
        layout = torch.load(view, map_location="meta", weights_only=True)
    in_order = layout.is_contiguous() and layout.storage_offset() == 0
    return offset + layout.untyped_storage()._checkpoint_offset if in_order else -1
