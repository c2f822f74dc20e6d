"""The norm of all gradients of a job, and clipping to it, over every way in which parameters are spread."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.tensor import DTensor
from torchtitan.distributed import ParallelDims


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, parallel_dims: ParallelDims, twins: Iterable[nn.Parameter] = ()
) -> float:
    """Scales gradients so that their norm is at most ``max_norm``; returns the norm before, equal on every rank.

    torchtitan's function (torchtitan/distributed/utils.py:399) takes one mesh for all parameters; under tensor
    parallelism some are spread over more meshes than others.

    Args:
        parameters: those of this rank, of all its pipeline stages.
        max_norm: the largest norm to let through.
        parallel_dims: the job's layout.
        twins: parameters whose gradient another one of these has too (a tied weight's second copy); they are scaled
            and not counted.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    uncounted = {id(parameter) for parameter in twins}
    by_mesh: dict[int, list[torch.Tensor]] = {}
    for parameter in parameters:
        if id(parameter) not in uncounted:
            gradient = parameter.grad
            assert gradient is not None
            mesh = hash(gradient.device_mesh) if isinstance(gradient, DTensor) else 0
            by_mesh.setdefault(mesh, []).append(gradient)
    squares = [_norm(gradients) ** 2 for gradients in by_mesh.values()]
    device = parameters[0].device if parameters else torch.device("cpu")
    total = torch.stack(squares).sum() if squares else torch.zeros((), device=device)
    stages = parallel_dims.get_optional_mesh("pp")
    if stages is not None:
        dist.all_reduce(total, group=stages.get_group())
    norm = total.sqrt()
    for group in _by_kind(parameters):
        torch.nn.utils.clip_grads_with_norm_(group, max_norm, norm, foreach=True)
    return norm.item()


def _norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _by_kind(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters of one mesh at a time."""
    kinds: dict[int, list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault(hash(parameter.device_mesh) if isinstance(parameter, DTensor) else 0, []).append(parameter)
    return list(kinds.values())
