"""Parameters that several pipeline stages have: an embedding that is also the output head, on the first and the last,
and those in no module of their own, on all.

Copies start equal and get the sum of all gradients, so they stay equal; the gradient norm counts one of them.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from flame.models.ends import ends


class TiedEmbedding:
    """The copies that this rank's stages hold; collective over the pipeline.

    Args:
        first: the first stage's model, on the rank that holds it.
        last: the last stage's model, on the rank that holds it.
        group: the pipeline's ranks.
    """

    def __init__(self, first: PreTrainedModel | None, last: PreTrainedModel | None, group: dist.ProcessGroup) -> None:
        self.group = group
        self.first = _embedding(first) if first is not None else None
        self.last = _embedding(last) if last is not None else None
        holders: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(holders, (self.first is not None, self.last is not None), group=group)
        self.tied = any(last for _, last in holders)
        self._first_rank = next((rank for rank, (first, _) in enumerate(holders) if first), -1)
        self._last_rank = next((rank for rank, (_, last) in enumerate(holders) if last), -1)

    @property
    def twins(self) -> list[nn.Parameter]:
        """The second copy, on the rank that holds it."""
        return [self.last] if self.last is not None else []

    def sum_gradients(self) -> None:
        """Gives both copies the gradient of both uses."""
        if not self.tied:
            return
        if self.first is not None and self.last is not None:
            total = _local(self.first) + _local(self.last)
            _local(self.first).copy_(total)
            _local(self.last).copy_(total)
        elif self.first is not None:
            self._exchange(_local(self.first), self._last_rank)
        elif self.last is not None:
            self._exchange(_local(self.last), self._first_rank)

    def _exchange(self, gradient: torch.Tensor, peer: int) -> None:
        got = torch.empty_like(gradient)
        operations = [
            dist.P2POp(dist.isend, gradient.contiguous(), group=self.group, group_peer=peer),
            dist.P2POp(dist.irecv, got, group=self.group, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        gradient.add_(got)


class CommonParameters:
    """The copies that this rank's stages hold of parameters that every stage has; collective over the pipeline.

    Args:
        stages: this rank's stages by their number.
        names: the parameters.
        group: the pipeline's ranks.
    """

    def __init__(self, stages: dict[int, PreTrainedModel], names: tuple[str, ...], group: dist.ProcessGroup) -> None:
        self.group = group
        self.copies = [{index: stage.get_parameter(name) for index, stage in stages.items()} for name in names]

    @property
    def twins(self) -> list[nn.Parameter]:
        """All copies but those of the first stage."""
        return [copy for copies in self.copies for index, copy in copies.items() if index != 0]

    def sum_gradients(self) -> None:
        """Gives every copy the gradient of all uses."""
        for copies in self.copies:
            for copy in copies.values():
                if copy.grad is None:  # no layer of this stage uses it
                    copy.grad = torch.zeros_like(copy)
            total = torch.stack([_local(copy) for copy in copies.values()]).sum(0)
            dist.all_reduce(total, group=self.group)
            for copy in copies.values():
                _local(copy).copy_(total)


def _embedding(model: PreTrainedModel) -> nn.Parameter | None:
    embedding, _ = ends(model)
    return embedding.weight if isinstance(embedding, nn.Embedding) else None  # type: ignore[return-value]


def _local(parameter: nn.Parameter) -> torch.Tensor:
    """This rank's shard of a parameter's gradient."""
    gradient = parameter.grad
    assert gradient is not None
    return gradient._local_tensor if isinstance(gradient, DTensor) else gradient
