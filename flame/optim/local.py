"""What a rank holds of parameters that are spread over ranks, and sums over the whole of them."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def local_gradient(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter's gradient, cut as the parameter is."""
    gradient = parameter.grad
    assert gradient is not None
    if isinstance(parameter, DTensor):
        assert isinstance(gradient, DTensor)
        if gradient.placements != parameter.placements:
            gradient = gradient.redistribute(placements=parameter.placements)
    return local(gradient)


def sharded_dimensions(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions of a tensor's mesh, of more than one rank, over which it is cut."""
    if not isinstance(tensor, DTensor):
        return ()
    mesh = tensor.device_mesh
    return tuple(
        index
        for index, placement in enumerate(tensor.placements)
        if isinstance(placement, (Shard, _StridedShard)) and mesh.size(index) > 1
    )


def sum_over_parts(values: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Adds up what each rank found for its parts of parameters; one collective for those that are cut alike.

    Args:
        values: [K], one for each parameter.
        parameters: the K parameters.
    """
    values = values.clone()
    alike: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for index, parameter in enumerate(parameters):
        if dimensions := sharded_dimensions(parameter):
            assert isinstance(parameter, DTensor)
            alike.setdefault((hash(parameter.device_mesh), dimensions), []).append(index)
    for (_, dimensions), indices in alike.items():
        parameter = parameters[indices[0]]
        assert isinstance(parameter, DTensor)
        part = values[indices]
        for dimension in dimensions:
            dist.all_reduce(part, group=parameter.device_mesh.get_group(dimension))
        values[indices] = part
    return values
