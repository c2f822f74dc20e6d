"""LLaDA with a block length: blocks from left to right, each given the finished ones before it."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.plugins.exported import export, without_flame
from tests.plugins.test_llada import MASK, padded, tiny, tokens

BLOCK = 4


def blocks(attention: str = "sdpa", **changes: Any) -> Any:
    """A tiny model whose predictions are sharp."""
    model = tiny(attention, block_length=BLOCK, **changes)
    with torch.no_grad():
        model.lm_head.weight *= 10
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_token_sees_its_own_block_and_those_before(attention: str) -> None:
    model, ids = blocks(attention), tokens(1, 10)
    plain = model(ids).logits[0]
    for changed in range(10):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % MASK
        differs = (model(other).logits[0] - plain).abs().amax(-1) > 1e-6
        assert differs.tolist() == [seen // BLOCK >= changed // BLOCK for seen in range(10)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("start", [0, 2])
@torch.no_grad()
def test_one_pass_learns_what_a_pass_for_each_block_does(attention: str, start: int) -> None:
    model, clean = blocks(attention), tokens(2, 10)
    noisy = clean.masked_fill(torch.rand(2, 10, generator=torch.Generator().manual_seed(3)) < 0.5, MASK)
    together = model(noisy, clean_ids=clean, block_start=start).logits
    borders = sorted({0, 10, *range(start, 10, BLOCK)})
    for begin, end in zip(borders, borders[1:], strict=False):
        ids = torch.cat([clean[:, :begin], noisy[:, begin:end]], dim=1)
        alone = model(ids, block_start=start).logits[:, begin:]
        torch.testing.assert_close(together[:, begin:end], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_packed_documents_have_blocks_of_their_own() -> None:
    model, clean, noisy = blocks(), tokens(1, 13), tokens(1, 13, seed=1)
    positions = torch.cat([torch.arange(6), torch.arange(7)])[None]
    packed = model(noisy, clean_ids=clean, position_ids=positions).logits
    for part in (slice(0, 6), slice(6, 13)):
        alone = model(noisy[:, part], clean_ids=clean[:, part]).logits
        torch.testing.assert_close(packed[:, part], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def naive(model: Any, prompt: Tensor, length: int, cfg: float) -> Tensor:
    """Fills masks in one by one by confidence, the whole text anew each time."""
    ids = prompt
    for _ in range(length // BLOCK):
        start = len(ids)
        ids = torch.cat([ids, torch.full((BLOCK,), MASK)])
        for _ in range(BLOCK):
            options = {"block_start": len(prompt)}
            logits = model(ids[None], **options).logits[0]
            if cfg:
                empty = ids.clone()
                empty[: len(prompt)] = MASK
                without = model(empty[None], **options).logits[0]
                logits = without + (cfg + 1) * (logits - without)
            logits[:, MASK] = -math.inf
            chances, found = logits.softmax(-1).max(-1)
            best = max((index for index in range(start, len(ids)) if ids[index] == MASK), key=lambda i: chances[i])
            ids[best] = found[best]
    return ids


@pytest.mark.parametrize("cfg", [0.0, 1.0])
def test_the_cache_of_finished_blocks_is_exact(cfg: float) -> None:
    model, prompts = blocks(), [tokens(1, length, seed=length)[0] for length in (5, 9, 2)]
    ids, mask = padded(prompts)
    found = model.generate(ids, mask, max_new_tokens=12, cfg_scale=cfg, stop_at_eos=False)
    for row, prompt in zip(found, prompts, strict=True):
        assert torch.equal(row[-12:], naive(model, prompt, 12, cfg)[-12:])


@pytest.mark.parametrize("estimator, tolerance", [("count", 0.02), ("ratio", 0.04)])
def test_bounds_of_blocks_add_up(estimator: str, tolerance: float) -> None:
    model, prompt, answer = blocks(), tokens(1, 3)[0], tokens(1, 7, seed=1)[0]

    def bound(prompt: Tensor, answer: Tensor) -> float:
        generator = torch.Generator().manual_seed(0)
        options = {"samples": 8192, "batch_size": 1024, "generator": generator}
        return model.log_likelihood(prompt, answer, estimator=estimator, **options)

    first, rest = answer[:BLOCK], answer[BLOCK:]
    parts = bound(prompt, first) + bound(torch.cat([prompt, first]), rest)
    assert bound(prompt, answer) == pytest.approx(parts, rel=tolerance)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 8, "block_length": 2}, "block_length = 2: this model was trained with blocks of 4"),
        ({"max_new_tokens": 10}, "max_new_tokens = 10 is no multiple of 4, the block of this model; give 12"),
    ],
)
def test_other_blocks_than_those_it_was_trained_with_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blocks().generate(tokens(1, 3), **options)


def test_lengths_that_make_no_blocks_are_refused() -> None:
    for length in (1, -4, 2.5):
        with pytest.raises(ValueError, match="block_length = .* must be 0"):
            tiny(block_length=length)
    with pytest.raises(ValueError, match="clean_ids are for a config with a block_length"):
        tiny()(tokens(1, 8), clean_ids=tokens(1, 8))


def test_an_exported_folder_needs_no_flame(process_group, tmp_path: Path) -> None:
    model = blocks()
    ids, mask = padded([tokens(1, 4)[0], tokens(1, 7)[0]])
    folder = export(copy.deepcopy(model), tmp_path)
    logits, found = without_flame(folder, ids, mask, max_new_tokens=8)
    torch.testing.assert_close(logits, model(ids, attention_mask=mask).logits.detach())
    assert torch.equal(found, model.generate(ids, attention_mask=mask, max_new_tokens=8))
