"""The weights of a HuggingFace folder: found, checked against a model, and read into it piece by piece.

A model that is sharded over devices reads only its own rows, so no process ever holds more than one tensor.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.tensor import DTensor

from flame.checkpoint.safetensors_file import TensorInfo, as_bytes, read_header, read_into
from flame.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
NAMED_PROBLEMS = 3


@dataclass(frozen=True)
class HfWeights:
    """The tensors of a HuggingFace folder.

    Args:
        folder: The folder.
        files: Tensor name -> the file that holds it.
        tensors: Tensor name -> where it lies in that file.
    """

    folder: Path
    files: Mapping[str, Path]
    tensors: Mapping[str, TensorInfo]

    def renamed(self, rename: Callable[[str], str]) -> "HfWeights":
        """The same tensors under other names."""
        files, tensors = ({rename(name): value for name, value in held.items()} for held in (self.files, self.tensors))
        return HfWeights(self.folder, files, tensors)  # type: ignore[arg-type]

    def read(self, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        """Returns a block of a tensor.

        Only the rows of the block are read from the file; other dimensions are cut afterwards.

        Args:
            name: The tensor.
            offsets: Where the block begins, one number for each dimension.
            sizes: Shape of the block.
        """
        info = self.tensors[name]
        row_bytes = prod(info.shape[1:]) * info.dtype.itemsize
        start, shape = (offsets[0], (sizes[0], *info.shape[1:])) if info.shape else (0, ())
        rows = torch.empty(shape, dtype=info.dtype)
        descriptor = os.open(self.files[name], os.O_RDONLY)
        try:
            if rows.numel():
                read_into(descriptor, as_bytes(rows), info.offset + start * row_bytes)
        finally:
            os.close(descriptor)
        for dimension in range(1, len(info.shape)):
            rows = rows.narrow(dimension, offsets[dimension], sizes[dimension])
        return rows


def open_weights(folder: Path) -> HfWeights:
    """Reads the headers of a folder's safetensors files.

    Raises:
        CheckpointError: There are none, one is missing or truncated, or the weights have another format.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: name a HuggingFace folder with safetensors weights")
    files: dict[str, Path] = {}
    tensors: dict[str, TensorInfo] = {}
    for path in _weight_files(folder):
        if not path.is_file():
            raise CheckpointError(f"{path} is missing although {INDEX_FILE} names it: copy or download it again")
        header = read_header(path)
        tensors |= header
        files |= dict.fromkeys(header, path)
    return HfWeights(folder, files, tensors)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX_FILE).is_file():
        try:
            index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            return [folder / name for name in sorted(set(index["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{folder / INDEX_FILE} cannot be read: {error!r}") from None
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if any(folder.glob("*.bin")):
        raise CheckpointError(
            f"{folder} holds weights as .bin files only: load it with transformers and save_pretrained() it again"
        )
    raise CheckpointError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}: it has no weights to load")


def check_fit(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    source: Path,
    ignored: Iterable[str] = (),
) -> None:
    """Checks that stored tensors are those of a model.

    Args:
        wanted: Name -> shape of the model's tensors.
        found: Name -> shape of the stored tensors.
        source: Where they are stored, for the message.
        ignored: Regular expressions of stored names that the model does without.

    Raises:
        CheckpointError: A tensor is missing, unexpected or has another shape; the message names the first few.
    """
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    unexpected = [name for name in unexpected if not any(re.search(pattern, name) for pattern in ignored)]
    both = sorted(wanted.keys() & found.keys())
    misshapen = [
        f"{name} {list(found[name])} instead of {list(wanted[name])}" for name in both if found[name] != wanted[name]
    ]
    problems = [("lacks", missing), ("has unexpected", unexpected), ("has the wrong shape of", misshapen)]
    told = "; ".join(f"{what} {_first_few(names)}" for what, names in problems if names)
    if told:
        raise CheckpointError(f"{source} does not fit the model: it {told}. Use the model config it was made with")


def _first_few(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_PROBLEMS} more" if len(names) > NAMED_PROBLEMS else ""
    return ", ".join(names[:NAMED_PROBLEMS]) + more


@torch.no_grad()
def fill(state: Mapping[str, Tensor], weights: HfWeights) -> None:
    """Reads tensors from a folder in place, cast to the type they have.

    Args:
        state: Stored name -> tensor or DTensor, on any device; of a DTensor only the local shard is read.
        weights: The folder.
    """
    for name, tensor in state.items():
        if isinstance(tensor, DTensor):
            for chunk in tensor.__create_chunk_list__():
                shard = tensor.__get_tensor_shard__(MetadataIndex(name, chunk.offsets))
                if shard.numel():
                    shard.copy_(weights.read(name, tuple(chunk.offsets), tuple(chunk.sizes)))
        else:
            tensor.copy_(weights.read(name, (0,) * tensor.dim(), tuple(tensor.shape)))
