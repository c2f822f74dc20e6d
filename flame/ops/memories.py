"""Sorts tokens into the memories they are routed to: Mixture-of-Memories (Du et al., arXiv:2502.13685)."""

import functools
from typing import Any

import torch
from fla.layers.mom import MomAttention
from torch import Tensor

_forward = MomAttention.forward


@functools.wraps(_forward)
def mom_forward(self: MomAttention, *args: Any, **kwargs: Any) -> Any:
    """fla's forward, in training as in evaluation: in training its convolutions run over the borders between rows and
    memories, so that rows of a batch see each other.
    """
    training, self.training = self.training, False
    try:
        return _forward(self, *args, **kwargs)
    finally:
        self.training = training


def transform(
    x: Tensor,
    routing_mask: Tensor,
    num_memories: int,
    selected_memories: Tensor,
    attention_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, int, Tensor, Tensor]:
    """Gathers the tokens of each memory in their own order.

    fla's own sort is not stable on a CPU, so that tokens of one memory change places and see later ones.

    Args:
        x: [B, T, D].
        routing_mask: [B, T, M] which memories a token goes to; rows of padding are cleared in place.
        num_memories: M.
        selected_memories: [B, T] or [B, T, K] the same by number.
        attention_mask: [B, T] False where there is padding; None without any.

    Returns:
        The tokens by memory [M, B, L, D], with L the most that any memory of any row got; which of the sorted tokens
        they are [B * M, L] (0 where there is none); the sorted order [B * T * K]; L; and where there are tokens, as
        [B * M, L] and [M, B, L].
    """
    batch = x.shape[0]
    chosen = selected_memories.shape[2] if selected_memories.dim() == 3 else 1
    owner = torch.arange(batch, device=x.device)[:, None].expand(batch, x.shape[1])
    if attention_mask is not None:
        real = attention_mask[:, -routing_mask.shape[1] :].bool()
        routing_mask.masked_fill_(~real.unsqueeze(-1), 0)
        owner = owner.masked_fill(~real, batch)  # behind all others
    place = owner.repeat_interleave(chosen, 1) * num_memories + selected_memories.reshape(batch, -1)
    order = place.flatten().argsort(stable=True)
    counts = routing_mask.sum(1).flatten()  # [B * M]
    length = int(counts.max())
    ends = counts.cumsum(0)
    places = (ends - counts)[:, None] + torch.arange(length, device=x.device)
    filled = places < ends[:, None]  # [B * M, L]
    places = places.masked_fill(~filled, 0)
    tokens = x.repeat_interleave(chosen, 1).flatten(0, 1)[order][places]  # [B * M, L, D]
    by_memory = tokens.unflatten(0, (batch, num_memories)).transpose(0, 1)
    return by_memory, places, order, length, filled, filled.unflatten(0, (batch, num_memories)).transpose(0, 1)
