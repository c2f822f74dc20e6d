"""Sums of figures over the ranks of a job."""

import torch
import torch.distributed as dist
from torchtitan.distributed import ParallelDims

from flame import compat


def sum_over_data(
    figures: dict[str, torch.Tensor], parallel_dims: ParallelDims, operation: str = "sum", shares: bool = False
) -> dict[str, float]:
    """Reduces scalars in one collective per mesh.

    Args:
        figures: scalars by name; the same names on every rank.
        parallel_dims: the job's layout.
        operation: "sum" or "max".
        shares: False for what ranks know of the batch they read, which is the same on all ranks that read the same
            batch. True for what each rank computed of it: a part of the sequence, or zero on all but the last stage.

    Returns:
        The reduced figures as Python numbers, equal on every rank.
    """
    packed = torch.stack([value.detach().double().to(compat.DEVICE_TYPE) for value in figures.values()])
    _reduce(packed, parallel_dims, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[operation], shares)
    return dict(zip(figures, packed.tolist(), strict=True))


def sum_tensors(shares: dict[str, torch.Tensor], parallel_dims: ParallelDims) -> dict[str, torch.Tensor]:
    """Sums tensors of any shape, of which every rank has a share; the same names and shapes on every rank.

    Returns:
        float64 on the CPU, equal on every rank.
    """
    packed = torch.cat([value.detach().double().flatten().to(compat.DEVICE_TYPE) for value in shares.values()])
    _reduce(packed, parallel_dims, dist.ReduceOp.SUM, shares=True)
    parts = packed.cpu().split([value.numel() for value in shares.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(shares.items(), parts, strict=True)}


def _reduce(
    packed: torch.Tensor, parallel_dims: ParallelDims, operation: dist.ReduceOp.RedOpType, shares: bool
) -> None:
    spread = {"loss": parallel_dims.dp_cp_enabled, "pp": parallel_dims.pp_enabled}
    for name, wide in (spread if shares else {"batch": parallel_dims.dp_enabled}).items():
        if wide:
            dist.all_reduce(packed, op=operation, group=parallel_dims.get_mesh(name).get_group())
