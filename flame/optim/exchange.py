"""Brings each matrix together on one rank, and back: every matrix has an owner, which alone orthogonalises it.

Matrices that lie on the same ranks travel together, with one all-to-all each way. Copies of a part that several ranks
hold (HSDP) are sent once, and all of them come back.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from flame.optim.local import local, sharded_dimensions
from flame.optim.matrices import Cut, Matrix, Piece, share_out
from flame.optim.orthogonal import flops

# Values that one rank gathers at a time, about: 0.5 GiB in float32.
_ROUND = 2**27


class Stack:
    """Matrices of one shape that a rank owns: [K, M, N] with M <= N."""

    def __init__(self, numbers: list[int], shape: tuple[int, int], transposed: bool) -> None:
        self.numbers, self.tall = numbers, shape[0] > shape[1]
        self.outputs_last = self.tall != transposed
        self.shape = (len(numbers), *sorted(shape))

    def views(self, values: Tensor) -> Iterable[tuple[int, Tensor]]:
        """(number, matrix as it lies in its parameter), views of ``values``."""
        return ((n, x.mT if self.tall else x) for n, x in zip(self.numbers, values, strict=True))


class Exchange:
    """The way of some matrices to their owners, and of the updates back.

    Args:
        matrices: the matrices; their parameters lie on the same ranks.
        parameters: all parameters, which the matrices number.
        group: the ranks; None if each owns what it holds.
    """

    def __init__(
        self, matrices: Sequence[Matrix], parameters: Sequence[Tensor], group: dist.ProcessGroup | None = None
    ) -> None:
        self.matrices, self.group, self._dtype = matrices, group, torch.float32
        self.parts = {matrix.parameter: local(parameters[matrix.parameter]) for matrix in matrices}
        ranks = dist.get_process_group_ranks(group) if group is not None else [0]
        me = self.me = dist.get_rank(group) if group is not None else 0
        owners = share_out([flops(*matrix.shape, steps=1) for matrix in matrices], len(ranks))
        cut = Cut(matrices, parameters, ranks if group is not None else None)
        mine = [number for number, owner in enumerate(owners) if owner == me]
        theirs = [[number for number, owner in enumerate(owners) if owner == rank] for rank in range(len(ranks))]
        everyone = range(len(ranks))
        # An owner takes the pieces of its own replica and gives updates to all.
        self.sends = [cut.pieces((n for n in theirs[rank] if cut.alike(n, me, rank)), me) for rank in everyone]
        self.receives = [cut.pieces((n for n in mine if cut.alike(n, me, rank)), rank) for rank in everyone]
        self.returns = [cut.pieces(mine, rank) for rank in everyone]
        self.accepts = [cut.pieces(theirs[rank], me) for rank in everyone]
        alike: dict[tuple[tuple[int, int], bool], list[int]] = {}
        for number in mine:
            alike.setdefault((matrices[number].shape, matrices[number].transposed), []).append(number)
        self.stacks = [Stack(numbers, *kind) for kind, numbers in alike.items()]

    def gather(self, values: dict[int, Tensor], dtype: torch.dtype) -> list[Tensor]:
        """The matrices this rank owns.

        Args:
            values: this rank's parts, by the number of the parameter.
            dtype: the type to send and return them in.

        Returns:
            [K, M, N] for each of ``stacks``.
        """
        self._dtype, device = dtype, next(iter(values.values())).device
        values = {number: value.to(dtype) for number, value in values.items()}
        gathered = [torch.empty(stack.shape, dtype=dtype, device=device) for stack in self.stacks]
        wholes = self._views(gathered)
        parts = [[piece.of(values[self.matrices[piece.matrix].parameter]) for piece in sent] for sent in self.sends]
        for pieces, arrived in zip(self.receives, self._all_to_all(parts, self.receives, dtype, device), strict=True):
            for piece, part in zip(pieces, arrived, strict=True):
                wholes[piece.matrix][piece.here] = part
        return gathered

    def scatter(self, stacks: list[Tensor]) -> dict[int, Tensor]:
        """This rank's parts of what the owners made of their matrices, by the number of the parameter; ``stacks`` are
        in the order of the attribute."""
        dtype, device = self._dtype, next(iter(self.parts.values())).device
        wholes = self._views(stacks)
        sent = [[wholes[piece.matrix][piece.here] for piece in pieces] for pieces in self.returns]
        updates: dict[int, Tensor] = {}
        for pieces, arrived in zip(self.accepts, self._all_to_all(sent, self.accepts, dtype, device), strict=True):
            for piece, part in zip(pieces, arrived, strict=True):
                number = self.matrices[piece.matrix].parameter
                shape = self.parts[number].shape
                if part.numel() == shape.numel():
                    updates[number] = part.reshape(shape)
                    continue
                if number not in updates:
                    updates[number] = torch.empty(shape, dtype=dtype, device=device)
                piece.put(updates[number], part)
        return updates

    def _views(self, stacks: list[Tensor]) -> dict[int, Tensor]:
        return {n: view for stack, values in zip(self.stacks, stacks, strict=True) for n, view in stack.views(values)}

    def _all_to_all(
        self, parts: list[list[Tensor]], expected: list[list[Piece]], dtype: torch.dtype, device: torch.device
    ) -> list[list[Tensor]]:
        """What every rank has for this one, from what this one has for each; its own stays where it is."""
        if self.group is None:
            return parts
        flat = [[part.reshape(-1) for part in sent] if rank != self.me else [] for rank, sent in enumerate(parts)]
        sizes = [
            sum(prod(piece.shape) for piece in pieces) if rank != self.me else 0 for rank, pieces in enumerate(expected)
        ]
        outgoing = torch.cat([torch.empty(0, dtype=dtype, device=device), *(part for sent in flat for part in sent)])
        incoming = torch.empty(sum(sizes), dtype=dtype, device=device)
        dist.all_to_all_single(
            incoming, outgoing, sizes, [sum(part.numel() for part in sent) for sent in flat], group=self.group
        )
        arrived = list(incoming.split(sizes))
        return [
            parts[rank]
            if rank == self.me
            else [
                part.view(piece.shape)
                for piece, part in zip(pieces, buffer.split([prod(piece.shape) for piece in pieces]), strict=True)
            ]
            for rank, (pieces, buffer) in enumerate(zip(expected, arrived, strict=True))
        ]


def exchanges(matrices: Sequence[Matrix], parameters: Sequence[Tensor]) -> list[Exchange]:
    """The exchanges that bring all matrices to their owners, in an order that is equal on the ranks of each."""
    places: dict[tuple[int, ...], list[Matrix]] = {}
    for matrix in matrices:
        places.setdefault(_place(parameters[matrix.parameter]), []).append(matrix)
    made = []
    for ranks, held in places.items():
        group = _group(parameters[held[0].parameter], ranks) if ranks else None
        rounds: list[list[Matrix]] = [[]]
        # A parameter's matrices stay together: its update is made at once.
        for _, together in groupby(held, key=lambda matrix: matrix.parameter):
            wanted = [*rounds[-1], *together]
            if rounds[-1] and sum(prod(matrix.shape) for matrix in wanted) > _ROUND * max(1, len(ranks)):
                rounds.append(wanted[len(rounds[-1]) :])
            else:
                rounds[-1] = wanted
        made += [Exchange(part, parameters, group) for part in rounds]
    return made


def owned_where_it_lies(parameter: Tensor) -> bool:
    """Whether each rank holds whole matrices that no other has: on one device, and experts of which each has some."""
    if not isinstance(parameter, DTensor):
        return True
    cuts = sharded_dimensions(parameter)
    spread = [index for index in range(parameter.device_mesh.ndim) if parameter.device_mesh.size(index) > 1]
    by_expert = parameter.ndim == 3 and all(parameter.placements[index].dim == 0 for index in cuts)  # type: ignore[attr-defined]
    return not spread or (by_expert and len(cuts) == len(spread))


def _place(parameter: Tensor) -> tuple[int, ...]:
    """The ranks a parameter's matrices are gathered from; none if they are where they belong."""
    if owned_where_it_lies(parameter):
        return ()
    assert isinstance(parameter, DTensor)
    return tuple(parameter.device_mesh.mesh.flatten().tolist())


def _group(parameter: Tensor, ranks: tuple[int, ...]) -> dist.ProcessGroup | None:
    assert isinstance(parameter, DTensor)
    if parameter.device_mesh.ndim == 1:
        return parameter.device_mesh.get_group()
    if len(ranks) == dist.get_world_size():
        return dist.group.WORLD
    group = dist.new_group(sorted(ranks), use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup)
    return group
