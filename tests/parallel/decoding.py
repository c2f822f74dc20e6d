"""Whether an exported folder generates what the model computes on whole sequences."""

from typing import Any

import torch

from flame.inference.generate import load
from flame.plugin import load_plugin

TOLERANCE = 1e-4


def decoding_error(folder: str) -> str:
    """What of token-by-token generation from an exported folder is not what the whole sequence gives; empty if
    nothing.
    """
    model: Any = load(folder, "cpu")[0]
    if load_plugin(model.config.model_type).objective == "masked_diffusion":
        return denoising_error(model)
    ids = torch.randint(3, model.config.vocab_size, (2, 80), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if getattr(model.config, "use_cache", True) and (error := _cached_error(model, ids)) > TOLERANCE:
            return f"logits of cached tokens are off by {error:.0e}"
        options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        prompt, mask = ids[:1, :9], torch.ones(1, 9, dtype=torch.long)
        text = model.generate(input_ids=prompt, attention_mask=mask, **options)
        expected = model(input_ids=text, use_cache=False).logits[:, 8:-1]
        if model.generation_config.eos_token_id is not None:
            expected[..., model.generation_config.eos_token_id] = -torch.inf  # min_new_tokens forbids it
        if not torch.equal(text[:, 9:], expected.argmax(-1)):
            return "generate() gives other tokens than the whole sequence"
    return ""


def denoising_error(model: Any) -> str:
    """What of the masks that a model fills in is not what plain passes over the whole text give; empty if nothing."""
    prompt = torch.randint(3, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    options = {"input_ids": prompt, "max_new_tokens": 16, "block_length": 8, "steps": 6, "stop_at_eos": False}
    text = model.generate(**options)
    if not torch.equal(text, _denoised(model, prompt, blocks=2, size=8, steps=3)):
        return "generate() fills in other tokens than plain passes over the whole text"
    if not torch.equal(model.generate(**options, cache="dual", refresh=1), text):
        return "generate() fills in other tokens with a cache that is renewed in each step"
    return ""


@torch.no_grad()
def _denoised(model: Any, prompt: torch.Tensor, blocks: int, size: int, steps: int) -> torch.Tensor:
    """The prompts [B, P] with blocks of masks after them, in which each step fills in the likeliest predictions."""
    mask = model.config.mask_token_id
    text = torch.cat([prompt, torch.full((len(prompt), blocks * size), mask)], dim=1)
    for start in range(prompt.shape[1], text.shape[1], size):
        left = size
        for step in range(steps):
            count = -(-left // (steps - step))  # the first steps fill in one more where they cannot all be alike
            left -= count
            chances = model(input_ids=text).logits.float()
            chances[..., mask] = -torch.inf
            best, tokens = chances.softmax(-1).max(-1)
            for row in range(len(text)):
                hidden = [at for at in range(start, start + size) if text[row, at] == mask]
                for at in sorted(hidden, key=lambda at: -float(best[row, at]))[:count]:
                    text[row, at] = tokens[row, at]
    return text


def _cached_error(model: Any, ids: torch.Tensor, prompt: int = 70) -> float:
    """The relative error of logits computed token by token after a prompt; some families want a mask, some none."""
    try:
        return _stepwise_error(model, ids, prompt, torch.ones_like(ids))
    except (AssertionError, ValueError):
        return _stepwise_error(model, ids, prompt, None)


def _stepwise_error(model: Any, ids: torch.Tensor, prompt: int, mask: torch.Tensor | None) -> float:
    whole = model(input_ids=ids, use_cache=False).logits
    logits, cache, start = [], None, 0
    for stop in range(prompt, ids.shape[1] + 1):
        seen = None if mask is None else mask[:, :stop]
        output = model(input_ids=ids[:, start:stop], attention_mask=seen, past_key_values=cache, use_cache=True)
        logits, cache, start = [*logits, output.logits], output.past_key_values, stop
    return float((torch.cat(logits, 1) - whole).norm() / whole.norm())
