"""How much faster latent attention decodes from its compressed cache than by expanding it at every step.

    python tests/benchmarks/mla_decode.py [--context 2048] [--steps 15] [--threads 1]

Both forms decode the same tokens from the same cache, turn by turn, so that what else the machine does falls on both;
the figures are medians. The attention sizes are DeepSeek-V3's (latent 512 + 64, heads of 128 + 64) with fewer heads,
dense layers and a narrow width, on any device there is.
"""

import argparse
import json
import time
from statistics import median
from typing import Any

import flame.compat  # noqa: F401  # isort: skip  torchtitan binds its device when first imported
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.cache_utils import DynamicCache

from flame.inference.absorbed import absorbed


def model_of(heads: int, layers: int) -> Any:
    """A dense model with DeepSeek-V3's latent attention."""
    config = DeepseekV3Config(
        vocab_size=1024,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=layers,
        first_k_dense_replace=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        q_lora_rank=512,
        max_position_embeddings=1 << 16,
    )
    torch.manual_seed(0)
    return DeepseekV3ForCausalLM(config).eval()


@torch.no_grad()
def step(model: Any, cache: DynamicCache, token: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds and logits of decoding one token; the cache is as before afterwards."""
    start = time.perf_counter()
    logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    cache.crop(-1)  # tokens to remove
    return seconds, logits


def compare(context: int, steps: int, heads: int, layers: int, device: str) -> dict[str, float]:
    """Decodes ``steps`` tokens both ways after ``context`` others."""
    model = model_of(heads, layers).to(device)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.randint(1024, (1, context), device=device), past_key_values=cache, use_cache=True)
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    times: dict[str, list[float]] = {"expanded": [], "absorbed": []}
    difference = 0.0
    for _ in range(steps + 2):
        seconds, expected = step(model, cache, token)
        times["expanded"].append(seconds)
        with absorbed(model):
            seconds, found = step(model, cache, token)
        times["absorbed"].append(seconds)
        difference = max(difference, (found - expected).abs().max().item())
        token = expected[:, -1:].argmax(-1)
    middle = {name: 1e3 * median(values[2:]) for name, values in times.items()}
    held = sum(part[0, :, 0].numel() for layer in cache.layers for part in (layer.keys, layer.values))  # type: ignore[index]
    config: Any = model.config
    sizes = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    return {
        "context": context,
        "expanded_ms": round(middle["expanded"], 2),
        "absorbed_ms": round(middle["absorbed"], 2),
        "ratio": round(middle["expanded"] / middle["absorbed"], 2),
        "logits_differ_by": difference,
        "cached_values_per_token": held,
        "values_of_all_heads": heads * sizes * layers,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    print(json.dumps(compare(options.context, options.steps, options.heads, options.layers, str(device))))
