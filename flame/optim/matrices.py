"""Matrices inside parameters, and the pieces of them that each rank holds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from flame.optim.local import local, sharded_dimensions
from flame.pieces import held

Index = slice | Tensor
Box = tuple[tuple[int, int], ...]
"""First and last index (excluded) of each dimension."""


@dataclass(frozen=True)
class Matrix:
    """A matrix: a box inside a parameter."""

    parameter: int
    """Number of the parameter."""
    box: Box
    transposed: bool = False
    """Whether its rows are inputs."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) as they lie in the parameter."""
        (top, bottom), (left, right) = self.box[-2:]
        return bottom - top, right - left

    @property
    def scale(self) -> float:
        """By how much a step is longer where there are more outputs than inputs."""
        rows, columns = reversed(self.shape) if self.transposed else self.shape
        return max(1.0, rows / columns) ** 0.5


@dataclass(frozen=True)
class Piece:
    """What a rank holds of a matrix."""

    matrix: int
    expert: int | None
    """Which of the matrices in the rank's part of the parameter, if that is a stack."""
    there: tuple[Index, Index]
    """Where the piece lies in the rank's part of the parameter."""
    here: tuple[Index, Index]
    """Where it belongs in the matrix."""
    shape: tuple[int, int]

    def of(self, part: Tensor) -> Tensor:
        """The piece, from the rank's part of the parameter."""
        return (part if self.expert is None else part[self.expert])[self.there]

    def put(self, part: Tensor, values: Tensor) -> None:
        """Writes the piece into the rank's part of the parameter."""
        (part if self.expert is None else part[self.expert])[self.there] = values


def share_out(costs: Sequence[float], ranks: int) -> list[int]:
    """A rank for each cost, the largest first to whom has least so far; equal on every rank."""
    loads, owners = [0.0] * ranks, [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += costs[number]
    return owners


def matrices_of(number: int, shape: Sequence[int], parts: Sequence[int] = (), transposed: bool = False) -> list[Matrix]:
    """The matrices of a parameter.

    Args:
        number: the parameter's.
        shape: [out, in] or [E, out, in], with both swapped if ``transposed``.
        parts: sizes along the outputs of what is several projections in one; () if it is one.
        transposed: whether rows are inputs.
    """
    outputs = shape[-1] if transposed else shape[-2]
    starts = [sum(parts[:index]) for index in range(len(parts) + 1)] if parts else [0, outputs]
    boxes: list[Box] = []
    for low, high in zip(starts[:-1], starts[1:], strict=True):
        boxes.append(((0, shape[-2]), (low, high)) if transposed else ((low, high), (0, shape[-1])))
    experts = [((expert, expert + 1),) for expert in range(shape[0])] if len(shape) == 3 else [()]
    return [Matrix(number, (*expert, *box), transposed) for expert in experts for box in boxes]


class Cut:
    """How matrices are cut over ranks.

    Args:
        matrices: the matrices.
        parameters: all parameters, which the matrices number.
        ranks: those of the group, in its order; None if each has whole matrices: then boxes are those of its own part.
    """

    def __init__(self, matrices: Sequence[Matrix], parameters: Sequence[Tensor], ranks: list[int] | None) -> None:
        self.matrices, self.parameters, self.ranks = matrices, parameters, ranks
        self._coordinates: dict[object, tuple[int, ...]] = {}
        self._held: dict[object, list[Tensor]] = {}
        self._found: dict[object, tuple[int | None, tuple[Index, Index], tuple[Index, Index], tuple[int, int]]] = {}

    def alike(self, number: int, rank: int, other: int) -> bool:
        """Whether two ranks hold pieces of the same copy of a matrix."""
        if self.ranks is None:
            return True
        parameter = self.parameters[self.matrices[number].parameter]
        cuts = sharded_dimensions(parameter)
        here, there = self._coordinate(parameter, rank), self._coordinate(parameter, other)
        return all(index in cuts or a == b for index, (a, b) in enumerate(zip(here, there, strict=True)))

    def pieces(self, numbers: Iterable[int], rank: int) -> list[Piece]:
        """What a rank holds of some matrices, left out where that is nothing."""
        found = [Piece(number, *self._place(number, rank)) for number in numbers]
        return [piece for piece in found if piece.shape[0] and piece.shape[1]]

    def _place(
        self, number: int, rank: int
    ) -> tuple[int | None, tuple[Index, Index], tuple[Index, Index], tuple[int, int]]:
        matrix = self.matrices[number]
        parameter = self.parameters[matrix.parameter]
        key = (matrix.box, *self._kind(parameter, rank))
        if key not in self._found:
            device = local(parameter).device
            inside = [
                _inside(indices, *side)
                for indices, side in zip(self._indices(parameter, rank), matrix.box, strict=True)
            ]
            (rows, to_rows), (columns, to_columns) = inside[-2:]
            experts = inside[0][0] if len(inside) == 3 else torch.zeros(1, dtype=torch.long)
            shape = (len(rows), len(columns)) if len(experts) else (0, 0)
            expert = int(experts[0]) if len(inside) == 3 and len(experts) else None
            self._found[key] = expert, _pair(rows, columns, device), _pair(to_rows, to_columns, device), shape
        return self._found[key]

    def _kind(self, parameter: Tensor, rank: int) -> tuple[object, ...]:
        if self.ranks is None:
            return (local(parameter).shape,)
        assert isinstance(parameter, DTensor)
        return parameter.shape, parameter.placements, hash(parameter.device_mesh), self._coordinate(parameter, rank)

    def _indices(self, parameter: Tensor, rank: int) -> list[Tensor]:
        key = self._kind(parameter, rank)
        if key not in self._held:
            if self.ranks is None:
                self._held[key] = [torch.arange(size) for size in local(parameter).shape]
            else:
                assert isinstance(parameter, DTensor)
                self._held[key] = held(parameter, self._coordinate(parameter, rank))
        return self._held[key]

    def _coordinate(self, parameter: Tensor, rank: int) -> tuple[int, ...]:
        assert isinstance(parameter, DTensor) and self.ranks is not None
        key = hash(parameter.device_mesh), rank
        if key not in self._coordinates:
            self._coordinates[key] = tuple((parameter.device_mesh.mesh == self.ranks[rank]).nonzero()[0].tolist())
        return self._coordinates[key]


def _inside(indices: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Positions of the indices that lie in a range, and where in the range they lie."""
    positions = ((indices >= low) & (indices < high)).nonzero().flatten()
    return positions, indices[positions] - low


def _pair(rows: Tensor, columns: Tensor, device: torch.device) -> tuple[Index, Index]:
    """Indices of a box, as slices where they are consecutive."""
    first, second = _slice(rows), _slice(columns)
    if isinstance(first, Tensor):
        first = (first[:, None] if isinstance(second, Tensor) else first).to(device)
    return first, second.to(device) if isinstance(second, Tensor) else second


def _slice(indices: Tensor) -> Index:
    if not len(indices):
        return slice(0, 0)
    start, size = int(indices[0]), len(indices)
    return slice(start, start + size) if int(indices[-1]) == start + size - 1 else indices
