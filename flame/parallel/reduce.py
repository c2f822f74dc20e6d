"""Sums of figures over the ranks that hold different data."""

import torch
import torch.distributed as dist
from torchtitan.distributed import ParallelDims

from flame import compat


def sum_over_data(
    figures: dict[str, torch.Tensor], parallel_dims: ParallelDims, operation: str = "sum"
) -> dict[str, float]:
    """Reduces scalars over data-parallel ranks in one collective.

    Args:
        figures: scalars by name; the same names on every rank.
        parallel_dims: the job's layout.
        operation: "sum" or "max".

    Returns:
        The reduced figures as Python numbers, equal on every rank.
    """
    packed = torch.stack([value.detach().double().to(compat.DEVICE_TYPE) for value in figures.values()])
    if parallel_dims.dp_cp_enabled:
        reduction = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[operation]
        dist.all_reduce(packed, op=reduction, group=parallel_dims.get_mesh("loss").get_group())
    return dict(zip(figures, packed.tolist(), strict=True))
