"""Runs units (token mixers and MLPs of fla) on a share of their heads: tensor and context parallelism for what has no
plan of transformers.

While a unit runs, its parameters are this rank's shares, so that code which takes weights out of submodules (fused
norms, packed convolutions) meets shares too. What goes in is whole, what comes out is summed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from flame.errors import ConfigError
from flame.models.families.units import Unit, units_of
from flame.parallel.sums import SummedForward, SummedGradient
from flame.parallel.wide import adapt, share_context, widen


class Share(Protocol):
    """How the ranks of a group share a unit."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def parameter(self, whole: Tensor, kind: str) -> Tensor:
        """This rank's share of a parameter (``columns``, ``rows``), or the parameter itself (``whole``)."""
        ...

    def argument(self, whole: Tensor) -> Tensor:
        """This rank's share of channels [..., D]."""
        ...

    def gather(self, hidden: Tensor, options: dict[str, Any]) -> Tensor:
        """What the unit is to see of its input [B, T, D]; ``options`` are its keyword arguments, to be changed in place."""
        ...

    def scatter(self, output: Tensor) -> Tensor:
        """The unit's whole output, from this rank's share of the sum."""
        ...


class TensorShare:
    """Tensor parallelism: parameters are sharded, every rank sees the whole input."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group, self.rank, self.size = mesh.get_group(), mesh.get_local_rank(), mesh.size()

    def parameter(self, whole: Tensor, kind: str) -> Tensor:
        if kind == "whole":
            return SummedGradient.apply(whole, self.group)  # each rank sees only some of its uses
        assert isinstance(whole, DTensor)
        return whole.to_local()

    def argument(self, whole: Tensor) -> Tensor:
        return SummedGradient.apply(whole, self.group).chunk(self.size, dim=-1)[self.rank]

    def gather(self, hidden: Tensor, options: dict[str, Any]) -> Tensor:
        return SummedGradient.apply(hidden, self.group)

    def scatter(self, output: Tensor) -> Tensor:
        return SummedForward.apply(output, self.group)


def shard_units(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shards every unit of a model on the meta device over the ranks of ``mesh``."""
    modules = dict(model.named_modules())
    for path, unit in units_of(model).items():
        for owner, name, kind in _parameters(modules[path], unit):
            if kind != "whole":
                whole = owner._parameters[name]
                assert whole is not None
                placement = Shard(0 if kind == "columns" else whole.ndim - 1)
                shards = distribute_tensor(whole, mesh, [placement], src_data_rank=None)
                owner._parameters[name] = nn.Parameter(shards, requires_grad=whole.requires_grad)
        share_unit(modules[path], unit, TensorShare(mesh))


def share_unit(module: nn.Module, unit: Unit, share: Share) -> None:
    """Makes ``module`` run on a share of its heads from now on; sharing it again, over another group, shares the share."""
    for owner, name in _counts(module, unit):
        setattr(owner, name, getattr(owner, name) // share.size)
    parameters = list(_parameters(module, unit))
    forward = module.forward
    adapt(module)
    if unit.wide_norm:
        widen(module, unit.wide_norm)

    def on_share(*args: Any, **kwargs: Any) -> Any:
        hidden, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), args)
        for name in unit.arguments:
            if kwargs.get(name) is not None:
                kwargs[name] = share.argument(kwargs[name])
        hidden = share.gather(hidden, kwargs)
        with _shares_of(parameters, share), share_context(share):
            output = forward(hidden, *args, **kwargs)
        if isinstance(output, tuple):
            return share.scatter(output[0]), *output[1:]
        return share.scatter(output)

    module.forward = on_share  # type: ignore[method-assign]


def check_units(model: PreTrainedModel, degree: int, key: str, mixers_only: bool = False) -> None:
    """Refuses a degree that some unit's heads do not divide by, and layers with parts that are no units.

    Args:
        model: of fla, on the meta device.
        degree: how many ranks share a unit.
        key: what the degree is called in the job.
        mixers_only: whether parts in which positions do not meet may stay whole (context parallelism).

    Raises:
        ConfigError: names the module and the remedy.
    """
    units, modules = units_of(model), dict(model.named_modules())
    known = {path.rpartition(".")[2] for path in units}
    for path, module in modules.items():
        parent, _, leaf = path.rpartition(".")
        if parent.rpartition(".")[2].isdecimal() and path not in units and _holds_matrices(module):
            what = f"{type(module).__module__}:{type(module).__name__}"
            if leaf not in ("mlp", "ffn") or not mixers_only or leaf not in known:
                raise ConfigError(
                    f"{key} = {degree}: '{leaf}' of family '{model.config.model_type}' ({what}) cannot be split by heads; "
                    "set the degree to 1"
                )
    for path, unit in units.items():
        if mixers_only and not unit.mixes:
            continue
        for owner, name in _counts(modules[path], unit):
            if getattr(owner, name) % degree:
                raise ConfigError(
                    f"{key} = {degree} does not divide {name} = {getattr(owner, name)} of {path}; choose one that does"
                )
        for owner, name, kind in _parameters(modules[path], unit):
            size = owner._parameters[name].shape[0 if kind == "columns" else -1]  # type: ignore[union-attr]
            if kind != "whole" and size % degree:
                raise ConfigError(f"{key} = {degree} does not divide the {size} channels of {path}.{name}")


def _holds_matrices(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _counts(module: nn.Module, unit: Unit) -> Iterator[tuple[Any, str]]:
    for path in unit.counts:
        holder, _, name = path.rpartition(".")
        owner = module.get_submodule(holder)
        if isinstance(getattr(owner, name, None), int):
            yield owner, name


def _parameters(module: nn.Module, unit: Unit) -> Iterator[tuple[nn.Module, str, str]]:
    """Each parameter's owner, name there, and kind."""
    for path, owner in module.named_modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield owner, name, unit.kind(f"{path}.{name}".lstrip("."))


@contextmanager
def _shares_of(parameters: list[tuple[nn.Module, str, str]], share: Share) -> Iterator[None]:
    whole = [owner._parameters[name] for owner, name, _ in parameters]
    try:
        for owner, name, kind in parameters:
            owner._parameters[name] = share.parameter(owner._parameters[name], kind)  # type: ignore[arg-type,assignment]
        yield
    finally:
        for (owner, name, _), value in zip(parameters, whole, strict=True):
            owner._parameters[name] = value
