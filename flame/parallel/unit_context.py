"""Context parallelism for families made of units (fla): each rank runs some of the heads over the whole sequence.

A mixer's input is gathered along the sequence, the mixer runs on this rank's share of its heads, and its outputs are
summed and scattered again. So a recurrence is never cut, convolutions and norms need no neighbours, and any kernel
serves.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_tensor_autograd, reduce_scatter_tensor_autograd
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from flame.data.batch import Inputs, is_tensor
from flame.models.families.units import units_of
from flame.parallel.units import share_unit


class UnitContext:
    """One job's way of splitting sequences; as ``ContextParallel``.

    Args:
        mesh: the ranks that share a batch and split its sequences.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group, self.rank, self.size = mesh.get_group(), mesh.get_local_rank(), mesh.size()
        self._documents: Tensor | None = None  # [B, T], the document of each position of the batch under way
        self._rows = 0  # of the hidden states that a mixer is running on

    def attach(self, model: PreTrainedModel) -> None:
        """Makes the model's mixers run on whole sequences and some of their heads."""
        modules = dict(model.named_modules())
        for path, unit in units_of(model).items():
            if unit.mixes:
                share_unit(modules[path], unit, self)

    def shard(self, inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
        """This rank's part of a batch: T / ranks neighbouring positions of each row.

        Args, returns: as ``ContextParallel.shard``, with ``position_ids`` only where they were given.
        """
        length = labels.shape[1]
        own = torch.arange(length, device=labels.device).chunk(self.size)[self.rank]
        here: Inputs = {
            name: value[:, own] if is_tensor(value) and value.shape[:2] == labels.shape[:2] else value
            for name, value in inputs.items()
        }
        if "position_ids" in inputs:
            here["documents"] = (inputs["position_ids"] == 0).cumsum(1)  # [B, T], of all ranks
        return here, labels[:, own]

    def enter(self, documents: Tensor | None) -> None:
        """Says which documents the sequences of the coming forward pass consist of: [B, T], or None for one each."""
        self._documents = documents

    def parameter(self, whole: Tensor, kind: str) -> Tensor:
        """This rank's share; gradients of the other shares are zero here, and FSDP adds them up."""
        if kind in ("columns", "rows"):
            return whole.chunk(self.size, dim=0 if kind == "columns" else -1)[self.rank]
        return whole

    def argument(self, whole: Tensor) -> Tensor:
        """This rank's share of channels [..., D]."""
        return whole.chunk(self.size, dim=-1)[self.rank]

    def gather(self, hidden: Tensor, options: dict[str, Any]) -> Tensor:
        """[B, T / ranks, D] -> [B, T, D]; packed documents [1, B * T / ranks, D] -> [1, B * T, D] with all borders."""
        packed = options.get("cu_seqlens")
        self._rows = hidden.shape[0]
        if packed is not None:
            self._rows, options["cu_seqlens"] = self._whole(packed)
        here = hidden.reshape(self._rows, -1, hidden.shape[-1]).transpose(0, 1).contiguous()  # [T / ranks, B, D]
        whole = all_gather_tensor_autograd(here, 0, self.group).transpose(0, 1)
        return whole if packed is None else whole.reshape(1, -1, hidden.shape[-1])

    def _whole(self, packed: Tensor) -> tuple[int, Tensor]:
        """Rows and borders of the whole batch whose part has the borders ``packed``.

        They stay with that tensor: recomputation asks again when another micro-batch has been entered.
        """
        if not hasattr(packed, "_whole_batch"):
            assert self._documents is not None
            packed._whole_batch = len(self._documents), _borders(self._documents)  # type: ignore[attr-defined]
        return packed._whole_batch  # type: ignore[attr-defined]

    def scatter(self, output: Tensor) -> Tensor:
        """The sum over all ranks' heads [B, T, D], of which this rank keeps its own positions."""
        whole = output.reshape(self._rows, -1, output.shape[-1]).transpose(0, 1).contiguous()  # [T, B, D]
        here = reduce_scatter_tensor_autograd(whole, "sum", 0, self.group).transpose(0, 1)
        return here if len(output) == self._rows else here.reshape(1, -1, output.shape[-1])


def _borders(documents: Tensor) -> Tensor:
    """Where documents begin in the rows [B, T] put one after the other, and where the last ends."""
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    end = torch.tensor([documents.numel()], device=documents.device)
    return torch.cat([starts.flatten().nonzero().flatten(), end]).to(torch.int32)
