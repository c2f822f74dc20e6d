"""The safetensors format: tensors read and written piece by piece, by any number of threads, at known offsets.

A file is an 8-byte header length, a JSON header, and the tensors' bytes without gaps. Its own library reads by
memory map and writes from memory; here no more than a piece of a tensor is ever held.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flame.errors import CheckpointError

# Names of the format and torch's; the format's order puts wide types first, so that every tensor is aligned.
DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PIECE_BYTES = 512 * 1024  # small enough to stay in the CPU's cache between a read and the write that follows


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in a file.

    Args:
        dtype: Element type.
        shape: Sizes; ``()`` is a scalar.
        offset: First byte in the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return prod(self.shape) * self.dtype.itemsize


def as_bytes(tensor: Tensor) -> memoryview:
    """Returns the memory of a contiguous CPU tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_into(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fills ``buffer`` from ``offset`` on.

    Raises:
        CheckpointError: The file ends before that.
    """
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            raise CheckpointError(f"a file of weights ends {len(buffer) - done} bytes early: it is truncated")
        done += count


def write_all(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Writes all of ``buffer`` at ``offset``."""
    done = 0
    while done < len(buffer):
        done += os.pwrite(descriptor, buffer[done:], offset + done)


def start_flush(descriptor: int, offset: int, length: int) -> None:
    """Lets the system begin to bring a part of a file to the disk, so that the fsync at the end finds little to do."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Returns the tensors of a safetensors file.

    Raises:
        CheckpointError: The file is not one, or is truncated.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise CheckpointError(f"{path} is not a safetensors file or is truncated: copy or download it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: TensorInfo(DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
                for name, entry in header.items()
            }
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{path} has a header that cannot be read: {error!r}") from None
    end = max((info.offset + info.nbytes for info in tensors.values()), default=8 + length)
    if end > size:
        raise CheckpointError(f"{path} has {size} bytes instead of {end}: copy or download it again")
    return tensors


class SafetensorsWriter:
    """A safetensors file whose tensors are filled in any order.

    Args:
        path: The file; it must not exist.
        tensors: Element type and shape of each tensor.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        order = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
        header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in order:
            dtype, shape = tensors[name]
            begin, end = end, end + prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._data = 8 + len(text)
        self._header = header
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        write_all(self.descriptor, memoryview(len(text).to_bytes(8, "little") + text), 0)
        os.ftruncate(self.descriptor, self._data + end)

    def offset(self, name: str) -> int:
        """Returns where the bytes of a tensor begin in the file."""
        return self._data + self._header[name]["data_offsets"][0]

    def close(self) -> None:
        """Makes the file durable and closes it."""
        os.fsync(self.descriptor)
        os.close(self.descriptor)
