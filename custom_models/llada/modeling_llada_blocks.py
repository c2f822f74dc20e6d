"""Block diffusion: blocks from left to right, the tokens of each in any order (BD3-LM, https://arxiv.org/abs/2503.09573).

A block's masks see the block itself and the finished blocks before it. In training, all blocks of a row are learnt in
one pass: behind the text with masks stands the text itself, for later blocks to look back at.
"""

from collections.abc import Callable

import torch


def block_numbers(positions: torch.Tensor, length: int, start: int | torch.Tensor = 0) -> torch.Tensor:
    """Which block each token belongs to, [B, T].

    Args:
        positions: of the tokens in their document, [B, T].
        length: tokens of a block.
        start: a position at which a block begins, or [B, 1] of these; tokens before it are in blocks below 0.
    """
    return (positions - start) // length


def sees(blocks: torch.Tensor, copy: int) -> Callable[..., torch.Tensor]:
    """The mask function by which transformers asks whether a query sees a key.

    Args:
        blocks: number of each token's block, [B, S].
        copy: index at which the text itself begins, behind the text with masks; S where there is one text only.
    """

    def visible(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own, other = blocks[batch, query], blocks[batch, key]
        alike = query // copy == key // copy  # inductor compares no booleans
        finished = alike if copy == blocks.shape[1] else key >= copy
        return (alike & (other == own)) | (finished & (other < own))

    return visible
