"""Runs units (token mixers and MLPs of fla) on a share of their heads: tensor and context parallelism for what has no
plan of transformers.

While a unit runs, its parameters are this rank's shares, so that code which takes weights out of submodules (fused
norms, packed convolutions) meets shares too. What goes in is whole, what comes out is summed.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from flame.errors import ConfigError
from flame.models.ends import ends
from flame.models.families.units import Sections, Unit, units_of
from flame.parallel.sums import SummedForward, SummedGradient
from flame.parallel.wide import adapt, share_context, sum_output, widen


@dataclass
class Piece:
    """A parameter of a unit."""

    owner: nn.Module
    name: str
    kind: str
    """As ``Unit.kind`` says."""
    sections: Sections = ()
    """Of a packed one."""

    @property
    def value(self) -> Tensor:
        """What the owner holds now."""
        found = self.owner._parameters[self.name]
        assert found is not None
        return found

    @value.setter
    def value(self, value: Tensor) -> None:
        self.owner._parameters[self.name] = value  # type: ignore[assignment]


class Share(Protocol):
    """How the ranks of a group share a unit."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def parameter(self, whole: Tensor, kind: str) -> Tensor:
        """This rank's share of a parameter (``columns``, ``rows``), else the parameter itself."""
        ...

    def argument(self, whole: Tensor) -> Tensor:
        """This rank's share of channels [..., D]."""
        ...

    def gather(self, hidden: Tensor, options: dict[str, Any]) -> Tensor:
        """What the unit is to see of its input [B, T, D]; ``options`` are its keyword arguments, to be changed in
        place.
        """
        ...

    def scatter(self, output: Tensor) -> Tensor:
        """The unit's whole output, from this rank's share of the sum."""
        ...


class TensorShare:
    """Tensor parallelism: parameters are sharded, every rank sees the whole input."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group, self.rank, self.size = mesh.get_group(), mesh.get_local_rank(), mesh.size()

    def parameter(self, whole: Tensor, kind: str) -> Tensor:
        if kind in ("columns", "rows"):
            assert isinstance(whole, DTensor)
            return whole.to_local()
        return SummedGradient.apply(whole, self.group)  # each rank sees only some of its uses

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
        for piece in _pieces(modules[path], unit):
            if piece.kind in ("columns", "rows"):
                placement = Shard(0 if piece.kind == "columns" else piece.value.ndim - 1)
                shards = distribute_tensor(piece.value, mesh, [placement], src_data_rank=None)
                piece.value = nn.Parameter(shards, requires_grad=piece.value.requires_grad)
        share_unit(modules[path], unit, TensorShare(mesh))


def share_unit(module: nn.Module, unit: Unit, share: Share) -> None:
    """Makes ``module`` run on a share of its heads from now on; sharing it again, over another group, shares the
    share.
    """
    pieces = list(_pieces(module, unit))
    for owner, name in _counts(module, unit):
        setattr(owner, name, getattr(owner, name) // share.size)
    forward = module.forward
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    adapt(module)
    if unit.plain:
        setattr(module, unit.plain[0], getattr(module, unit.plain[1]))
    if unit.wide_norm and getattr(module, unit.wide_norm, None) is not None:
        widen(module, unit.wide_norm)
    for name in unit.sums:
        sum_output(module.get_submodule(name))

    def on_share(*args: Any, **kwargs: Any) -> Any:
        kwargs = dict(zip(names, args, strict=False)) | kwargs
        hidden = kwargs.pop(names[0])
        for name in unit.arguments:
            if kwargs.get(name) is not None:
                kwargs[name] = share.argument(kwargs[name])
        hidden = share.gather(hidden, kwargs)
        with _shares_of(pieces, share), share_context(share):
            output = forward(hidden, **kwargs)
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
    if (unknown := _unknown_module(model, units)) is not None:
        raise ConfigError(
            f"{key} = {degree}: {type(modules[unknown]).__name__}, the '{unknown.rpartition('.')[2]}' of family "
            f"'{model.config.model_type}', cannot be split by heads; set the degree to 1"
        )
    for path, unit in units.items():
        if mixers_only and not unit.mixes:
            continue
        for name in unit.single:
            if getattr(modules[path], name, 1) > 1:
                raise ConfigError(
                    f"{key} = {degree}: {path} with {name} = {getattr(modules[path], name)} cannot be split by heads; "
                    f"set the degree or {name} to 1"
                )
        for owner, name in _counts(modules[path], unit):
            if getattr(owner, name) % degree:
                raise ConfigError(
                    f"{key} = {degree} does not divide {name} = {getattr(owner, name)} of {path}; choose one that does"
                )
        for piece in _pieces(modules[path], unit):
            size = piece.value.shape[0 if piece.kind == "columns" else -1]
            if piece.kind in ("columns", "rows") and size % degree:
                raise ConfigError(f"{key} = {degree} does not divide the {size} channels of {path}.{piece.name}")


def _unknown_module(model: PreTrainedModel, units: dict[str, Unit]) -> str | None:
    """The part of a layer that holds matrices but is no unit; what weighs residuals ([1, D]) may stay whole."""
    modules = dict(model.named_modules())
    whole = {id(module) for module in (model, model.base_model, *ends(model))}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        inside = any(f"{owner}.".startswith(f"{unit}.") for unit in units)
        if parameter.ndim > 1 and len(parameter) > 1 and id(modules[owner]) not in whole and not inside:
            parts = owner.split(".")
            layer = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts))
            return ".".join(parts[: layer + 2])
    return None


def _counts(module: nn.Module, unit: Unit) -> Iterator[tuple[Any, str]]:
    submodules = dict(module.named_modules())
    for path in unit.counts:
        holder, _, name = path.rpartition(".")
        owner = submodules.get(holder)
        if isinstance(getattr(owner, name, None), int):
            yield owner, name


def _pieces(module: nn.Module, unit: Unit) -> Iterator[Piece]:
    for path, owner in module.named_modules():
        for name, parameter in owner._parameters.items():
            full = f"{path}.{name}".lstrip(".")
            if parameter is not None:
                sections = unit.packed[full](module) if full in unit.packed else ()
                yield Piece(owner, name, unit.kind(full), sections)


@contextmanager
def _shares_of(pieces: list[Piece], share: Share) -> Iterator[None]:
    whole = [piece.value for piece in pieces]
    try:
        for piece in pieces:
            piece.value = _share_of(piece, share)
        yield
    finally:
        for piece, value in zip(pieces, whole, strict=True):
            piece.value = value


def _share_of(piece: Piece, share: Share) -> Tensor:
    value = share.parameter(piece.value, piece.kind)
    if piece.kind == "offset":  # every rank adds it to its share of the sum
        return value / share.size
    if piece.kind != "packed":
        return value
    # Another share may have been taken before, of the sections that list channels.
    shared = sum(size for size, split in piece.sections if not split)
    full = sum(size for size, split in piece.sections if split)
    here = [size * (len(value) - shared) // full if split else size for size, split in piece.sections]
    parts = [
        part.chunk(share.size)[share.rank] if split else part
        for part, (_, split) in zip(value.split(here), piece.sections, strict=True)
    ]
    return torch.cat(parts)
