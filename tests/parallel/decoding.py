"""Whether an exported folder generates what the model computes on whole sequences."""

from typing import Any

import torch

from flame.inference.generate import load

TOLERANCE = 1e-4


def decoding_error(folder: str) -> str:
    """What of token-by-token generation from an exported folder is not what the whole sequence gives; empty if
    nothing.
    """
    model: Any = load(folder, "cpu")[0]
    ids = torch.randint(3, model.config.vocab_size, (2, 80), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if model.config.use_cache and (error := _cached_error(model, ids)) > TOLERANCE:
            return f"logits of cached tokens are off by {error:.0e}"
        options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        prompt, mask = ids[:1, :9], torch.ones(1, 9, dtype=torch.long)
        text = model.generate(input_ids=prompt, attention_mask=mask, **options)
        if not torch.equal(text[:, 9:], model(input_ids=text, use_cache=False).logits[:, 8:-1].argmax(-1)):
            return "generate() gives other tokens than the whole sequence"
    return ""


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
