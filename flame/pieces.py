"""Which part of a whole tensor a rank holds, also where that part is not one box.

Tensor parallelism splits projections that are several in one (gate and up) so that each rank holds a piece of every
one: ``_StridedShard`` over the tensor-parallel ranks. FSDP then cuts what is left. torch describes the result by one
offset and one size (torch/distributed/tensor/_utils.py, ``compute_local_shape_and_global_offset``), which is right
only where the part is contiguous, and where FSDP's ranks divide what tensor parallelism left.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard


def is_strided(tensor: DTensor) -> bool:
    """True if torch's description of a rank's part cannot be relied on."""
    return any(isinstance(placement, _StridedShard) for placement in tensor.placements)


def held(tensor: DTensor, coordinate: Sequence[int] | None = None) -> list[torch.Tensor]:
    """For each dimension of the whole tensor, the indices a rank holds, in the order of its local tensor; this rank, or
    the one at ``coordinate`` of the tensor's mesh."""
    indices = [torch.arange(size) for size in tensor.shape]
    coordinate = coordinate or tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    # The innermost dimension of the mesh (tensor parallelism) was applied first; FSDP cuts what that left.
    for dimension in reversed(range(tensor.device_mesh.ndim)):
        placement = tensor.placements[dimension]
        if not isinstance(placement, (Shard, _StridedShard)):
            continue
        ranks, rank, axis = tensor.device_mesh.size(dimension), coordinate[dimension], placement.dim % tensor.ndim
        blocks = [indices[axis]]
        if isinstance(placement, _StridedShard) and _packs(tensor, dimension):
            blocks = list(indices[axis].chunk(placement.split_factor))
        indices[axis] = torch.cat([_chunk(block, ranks, rank) for block in blocks])
    return indices


def boxes(tensor: DTensor) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """This rank's part as boxes: (offsets in the whole tensor, sizes, offsets in the local tensor)."""
    runs = [_runs(indices) for indices in held(tensor)]
    return [tuple(zip(*corner, strict=True)) for corner in product(*runs)]  # type: ignore[misc]


def part_of(tensor: DTensor, whole: torch.Tensor) -> torch.Tensor:
    """What this rank holds of ``whole``."""
    for axis, indices in enumerate(held(tensor)):
        if len(indices) != whole.shape[axis]:
            whole = whole.index_select(axis, indices.to(whole.device))
    return whole


def _packs(tensor: DTensor, dimension: int) -> bool:
    """FSDP also says ``_StridedShard``, over ranks that shard the same axis further in; that is no packing."""
    placement = tensor.placements[dimension]
    if not isinstance(placement, _StridedShard):
        return False
    inner = 1
    for later in range(dimension + 1, tensor.device_mesh.ndim):
        other = tensor.placements[later]
        if isinstance(other, (Shard, _StridedShard)) and other.dim % tensor.ndim == placement.dim % tensor.ndim:
            inner *= tensor.device_mesh.size(later)
    return placement.split_factor != inner


def _chunk(indices: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    """``torch.chunk``, with nothing for ranks that it has no chunk for."""
    chunks = indices.chunk(ranks)
    return chunks[rank] if rank < len(chunks) else indices[:0]


def _runs(indices: torch.Tensor) -> list[tuple[int, int, int]]:
    """Runs of consecutive indices: (first index, length, position of the first)."""
    if not len(indices):
        return []
    starts = [0, *((indices[1:] - indices[:-1] != 1).nonzero().flatten() + 1).tolist(), len(indices)]
    return [(int(indices[start]), end - start, start) for start, end in zip(starts[:-1], starts[1:], strict=True)]
