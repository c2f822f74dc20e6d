"""Prompts side by side: which may share a batch, and how their rows are filled up."""

import copy
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from transformers import PreTrainedModel

from flame.inference.engine import Engine
from flame.inference.folder import FOREIGN_ERRORS
from flame.inference.prompts import Prompt
from flame.models.config import shrink

_TOLERANCE = 1e-4  # float32, a few layers


def left_padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens as a batch [B, T], filled on the left, and its mask [B, T], 0 where filled."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], dtype=torch.long, device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def in_batches(prompts: Sequence[Prompt], size: int, pads: bool) -> Iterator[list[int]]:
    """Indices of prompts that are to be decoded together, those of like length side by side.

    Args:
        prompts: any number.
        size: prompts of a batch at most.
        pads: whether lengths may differ in a batch.
    """
    lengths = [len(prompt.ids) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lengths.__getitem__)
    groups = [order] if pads else [list(group) for _, group in groupby(order, key=lengths.__getitem__)]
    for group in groups:
        yield from (group[start : start + size] for start in range(0, len(group), size))


def honours_padding(engine: Engine) -> bool:
    """Whether the family computes for a row filled on the left what it computes for the row alone.

    fla's families take the mask in their layers by different ways, with and without a cache, so they are not asked. Of
    any other a scaled-down model decodes some tokens of a row both ways; a family that fails to is taken at its word.
    """
    if engine.plugin.documents == "cu_seqlens":
        return False
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            model = type(engine.model)(shrink(copy.deepcopy(engine.model.config))).float().eval()
            row = torch.randint(3, model.config.get_text_config().vocab_size, (7,)).tolist()
        alone, filled = _decoded(model, [row])[0], _decoded(model, [row, row + row[:4]])[0]
        return bool((alone - filled).norm() <= _TOLERANCE * alone.norm())
    except FOREIGN_ERRORS:  # it takes no such mask, or cannot be scaled down: rows of one length are right in any case
        return False


def _decoded(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    """The logits [B, 4, V] of four greedy tokens."""
    ids, mask = left_padded(rows, 0, "cpu")
    output = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(output.logits, 1)
