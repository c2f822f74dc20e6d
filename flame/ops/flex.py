"""Attention under a rule of places, which fla's CAT gives to FlexAttention; that has no gradient on a CPU."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 256
"""Queries that share a mask."""


def create_block_mask_compiled(mask_mod, B: int | None, H: int | None, Q_LEN: int, KV_LEN: int) -> BlockMask:  # noqa: N803
    """The mask of a rule ``mask_mod(b, h, query, key)`` for all batches and heads alike, without compiling."""
    return create_block_mask(mask_mod, B, H, Q_LEN, KV_LEN, device=torch.accelerator.current_accelerator() or "cpu")


def flex_attention_compiled(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask | None = None) -> Tensor:
    """Softmax attention of the keys that a rule lets each query see.

    Args:
        q: [B, H, T, K].
        k: [B, H, S, K], ``v``: [B, H, S, V].
        block_mask: holds the rule, the same for all batches and heads; None for all keys.

    Returns:
        [B, H, T, V].
    """
    if block_mask is None:
        return scaled_dot_product_attention(q, k, v)
    keys, zero = torch.arange(k.shape[2], device=q.device), torch.zeros((), dtype=torch.long, device=q.device)
    outputs = []
    for start in range(0, q.shape[2], BLOCK):
        rows = torch.arange(start, min(start + BLOCK, q.shape[2]), device=q.device)
        seen = block_mask.mask_mod(zero, zero, rows[:, None], keys)
        outputs.append(scaled_dot_product_attention(q[:, :, start : start + BLOCK], k, v, seen))
    return torch.cat(outputs, 2)
