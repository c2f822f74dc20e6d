"""Context parallelism: every rank holds a part of each sequence, and attention sees all of it.

Attention is the only place where positions meet, so it is the only place that changes: the model runs on its part of
the sequence with the positions that part has, and an attention function and a mask function registered with
transformers bring the sequence together, by one of two ways:

``allgather``: keys and values of all ranks are gathered; queries stay. With ``headtail`` balancing a rank holds an
early and a late piece of the sequence, so that all ranks have the same number of (query, key) pairs to look at.
``alltoall``: heads are exchanged for positions, so that each rank sees whole sequences for some of the heads
(DeepSpeed-Ulysses, https://arxiv.org/abs/2309.14509).
"""

import sys
from itertools import count
from typing import Any, Protocol

import torch
from torch.distributed._functional_collectives import all_gather_tensor_autograd, all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flame.data.batch import Inputs, is_tensor
from flame.errors import ConfigError

_numbers = count()


class SplitSequence(Protocol):
    """What passes and stages need of context parallelism, whichever way sequences are split."""

    def attach(self, model: PreTrainedModel) -> None:
        """Makes the model run on parts of sequences."""
        ...

    def shard(self, inputs: Inputs, labels: torch.Tensor) -> tuple[Inputs, torch.Tensor]:
        """This rank's part of a batch and its labels."""
        ...

    def enter(self, documents: torch.Tensor | None) -> None:
        """Says which documents the sequences of the coming forward pass consist of."""
        ...


class ContextParallel:
    """One job's way of splitting sequences; attach it to every model part before the first forward pass.

    Args:
        mesh: the ranks that share a batch and split its sequences.
        method: ``allgather`` or ``alltoall``.
        balanced: whether ranks hold a head and a tail piece; has no meaning for ``alltoall``.
    """

    def __init__(self, mesh: DeviceMesh, method: str, balanced: bool) -> None:
        self.group, self.ranks, self.rank = mesh.get_group(), mesh.size(), mesh.get_local_rank()
        self.exchanges_heads = method == "alltoall"
        self.pieces = 2 if balanced and not self.exchanges_heads else 1
        self.name = f"flame_context_parallel_{next(_numbers)}"
        self._base = "sdpa"
        self._documents: torch.Tensor | None = None  # [B, T], the document of each position of the batch under way
        AttentionInterface.register(self.name, self.attend)
        AttentionMaskInterface.register(self.name, self.mask)

    def attach(self, model: PreTrainedModel) -> None:
        """Makes the model's attention layers use this object."""
        self._base = model.config._attn_implementation or "sdpa"
        if self._base not in ("sdpa", "eager"):
            raise ConfigError(
                f"model.attn_implementation = '{self._base}' does not go with context parallelism; use 'sdpa'"
            )
        model.set_attn_implementation(self.name)

    def shard(self, inputs: Inputs, labels: torch.Tensor) -> tuple[Inputs, torch.Tensor]:
        """This rank's part of a batch.

        Args:
            inputs: ``input_ids`` [B, T], perhaps ``position_ids`` [B, T] that restart at each document, and others of
                the same shape.
            labels: [B, T], already shifted.

        Returns:
            The same with T / ranks positions, and ``position_ids`` and an all-true ``attention_mask`` in any case.
        """
        length = labels.shape[1]
        own = self.positions(length).to(labels.device)
        here: Inputs = {
            name: value[:, own] if is_tensor(value) and value.shape[:2] == labels.shape[:2] else value
            for name, value in inputs.items()
        }
        here.setdefault("position_ids", own.unsqueeze(0).expand(len(labels), -1))
        # Positions that jump would be taken for packed documents if there were no mask.
        here["attention_mask"] = torch.ones_like(here["position_ids"])
        if "position_ids" in inputs:
            here["documents"] = (inputs["position_ids"] == 0).cumsum(1)  # [B, T], of all ranks
        return here, labels[:, own]

    def enter(self, documents: torch.Tensor | None) -> None:
        """Says which documents the sequences of the coming forward pass consist of: [B, T], or None for one each."""
        self._documents = documents

    def positions(self, length: int) -> torch.Tensor:
        """The positions of a sequence that this rank holds, in ascending order."""
        whole = torch.arange(length).chunk(self.ranks * self.pieces)
        mine = [self.rank, 2 * self.ranks - 1 - self.rank][: self.pieces]
        return torch.cat([whole[index] for index in mine])

    def mask(
        self, q_length: int, mask_function: Any, device: Any = None, config: Any = None, dtype: Any = None, **_: Any
    ) -> torch.Tensor | None:
        """What transformers calls for an attention mask; None stands for one over whole sequences, causal if the layer
        is.

        Args:
            q_length: positions on this rank.
            mask_function: whether (batch, head, query, key) positions see each other; windows and chunks are in it.

        Returns:
            [B or 1, 1, Q, T]: which keys each query sees. True means it does; for eager attention 0 and -inf.
        """
        length = q_length * self.ranks
        documents = self._documents
        if mask_function in (causal_mask_function, bidirectional_mask_function) and documents is None:
            return None
        rows = torch.arange(length) if self.exchanges_heads else self.positions(length)
        query, key = rows.to(device).view(1, 1, -1, 1), torch.arange(length, device=device).view(1, 1, 1, -1)
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
        seen = mask_function(zero, zero, query, key).expand(1, 1, len(rows), length)
        if documents is not None:
            seen = seen & (documents[:, None, rows.to(documents.device), None] == documents[:, None, None, :])
        return self._as_base_wants(seen, dtype)

    def _as_base_wants(self, seen: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        if self._base == "sdpa":
            return seen
        dtype = dtype or torch.float32
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,  # [B, H, T / ranks, D]
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """What attention layers call; returns [B, T / ranks, H, D]."""
        causal = options.pop("is_causal", None)
        causal = getattr(module, "is_causal", True) if causal is None else causal
        if self.exchanges_heads:
            return self._attend_by_heads(module, query, key, value, attention_mask, options, causal), None
        key, value = self._gathered(key, value)
        if attention_mask is not None or not causal:
            return self._base_attention(module, query, key, value, attention_mask, options, causal), None
        results = []
        for piece, start in zip(query.chunk(self.pieces, dim=2), self._starts(query.shape[2]), strict=True):
            end = start + piece.shape[2]
            mask = self._lower_right(piece.shape[2], end, query)
            keys, values = key[:, :, :end], value[:, :, :end]
            results.append(self._base_attention(module, piece, keys, values, mask, options, causal))
        return torch.cat(results, dim=1), None

    def _starts(self, held: int) -> list[int]:
        """The position of the whole sequence at which each of this rank's pieces begins."""
        own = self.positions(held * self.ranks)
        return own[:: held // self.pieces].tolist()

    def _lower_right(self, queries: int, keys: int, like: torch.Tensor) -> Any:
        """The mask of queries that are the last of ``keys`` positions."""
        if self._base == "sdpa" and like.device.type == "cuda":
            return causal_lower_right(queries, keys)  # kernels know this one without a mask in memory
        seen = torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril(keys - queries)
        return self._as_base_wants(seen.view(1, 1, queries, keys), like.dtype)

    def _base_attention(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Any,
        options: dict[str, Any],
        causal: bool,
    ) -> torch.Tensor:
        """The family's attention over what it is given, [B, Q, H, D]; ``causal`` where no mask says so."""
        if self._base == "sdpa":
            attention: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]
            options = {**options, "is_causal": causal and mask is None}
        else:
            attention = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
        return attention(module, query, key, value, mask, **options)[0]

    def _gathered(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all ranks, [B, H, T, D], in the order of the sequence."""
        widths = [key.shape[-1], value.shape[-1]]
        both = torch.cat([key, value], dim=-1).movedim(2, 0).contiguous()  # [T / ranks, B, H, 2D]
        both = all_gather_tensor_autograd(both, 0, self.group)
        if self.pieces == 2:
            pieces = both.chunk(2 * self.ranks)  # rank 0's head, its tail, rank 1's head, ...
            both = torch.cat([*pieces[0::2], *reversed(pieces[1::2])])
        key, value = both.movedim(0, 2).split(widths, dim=-1)
        return key, value

    def _attend_by_heads(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        options: dict[str, Any],
        causal: bool,
    ) -> torch.Tensor:
        heads = query.shape[1]
        if heads % self.ranks:
            raise ConfigError(
                f"parallelism.context_parallel_rotate_method = 'alltoall' needs attention heads ({heads} here) that "
                f"context_parallel_degree = {self.ranks} divides; use 'allgather'"
            )
        if key.shape[1] % self.ranks:
            # Each rank needs the key/value heads of its queries: repeat them until they can be shared out.
            repeats = heads // key.shape[1]
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        query, key, value = (self._positions_for_heads(states) for states in (query, key, value))
        groups = getattr(module, "num_key_value_groups", 1)
        module.num_key_value_groups = query.shape[1] // key.shape[1]  # type: ignore[assignment]
        sinks = module._parameters.get("sinks")  # GPT-OSS: a learned score per head that attends to nothing
        if sinks is not None:
            module._parameters["sinks"] = sinks.chunk(self.ranks)[self.rank]  # type: ignore[assignment]
        try:
            if mask is None and causal and self._base != "sdpa":
                mask = self._lower_right(query.shape[2], query.shape[2], query)
            result = self._base_attention(module, query, key, value, mask, options, causal)  # [B, T, H / ranks, D]
        finally:
            module.num_key_value_groups = groups  # type: ignore[assignment]
            if sinks is not None:
                module._parameters["sinks"] = sinks
        return self._heads_for_positions(result)

    def _positions_for_heads(self, states: torch.Tensor) -> torch.Tensor:
        """[B, H, T / ranks, D] of all heads -> [B, H / ranks, T, D] of some."""
        batch, heads, held, width = states.shape
        sent = states.reshape(batch, self.ranks, heads // self.ranks, held, width).movedim(1, 0).contiguous()
        got = all_to_all_single_autograd(sent, None, None, self.group)  # [ranks, B, H / ranks, T / ranks, D]
        return got.movedim(0, 2).reshape(batch, heads // self.ranks, self.ranks * held, width)

    def _heads_for_positions(self, states: torch.Tensor) -> torch.Tensor:
        """[B, T, H / ranks, D] of some heads -> [B, T / ranks, H, D] of all."""
        batch, length, heads, width = states.shape
        sent = states.reshape(batch, self.ranks, length // self.ranks, heads, width).movedim(1, 0).contiguous()
        got = all_to_all_single_autograd(sent, None, None, self.group)  # [ranks, B, T / ranks, H / ranks, D]
        return got.movedim(0, 2).reshape(batch, length // self.ranks, self.ranks * heads, width)
