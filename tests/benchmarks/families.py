"""Families against the arithmetic they ought to cost.

    python tests/benchmarks/families.py [--only nanochat|huginn] [--rounds 3] [--steps 9]

nanochat: tokens/s of nanochat d6 (6 layers, width 384, 6 heads, vocabulary 32,768, batch 4 x 512, float32) trained by
    flame with Muon, against the same transformers model in a hand loop with torch.optim.Muon and torch.optim.AdamW.
huginn: the step time of a recurrent-depth model with a drawn depth, against what a plain GPT (Llama) of the same sizes
    says: its time per layer, forward and backward, times the layers that the drawn depth runs.

Each measurement is a process of its own, sides take turns, and medians of rounds are printed. ``muon.py`` and
``mla_decode.py`` measure the optimizer's update and the decoding of latent attention.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from overhead import VOCABULARY, flame_run

import flame  # noqa: F401  before torch: it asks for huge pages, as in training

BATCH, LENGTH = 4, 512
NANOCHAT: dict[str, Any] = {
    "model_type": "nanochat",
    "vocab_size": VOCABULARY,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "pad_token_id": None,
}
HUGINN: dict[str, Any] = {
    "model_type": "huginn_raven",
    "vocab_size": 8192,
    "n_embd": 384,
    "n_heads": 6,
    "intermediate_size": 1024,
    "n_layers_in_prelude": 1,
    "n_layers_in_recurrent_block": 2,
    "n_layers_in_coda": 1,
    "mean_recurrence": 8,
    "mean_backprop_depth": 4,
    "block_size": 1024,
}
# A plain GPT with the layers that run once: prelude and coda.
GPT: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
MODELS = {"shallow": GPT, "deep": {**GPT, "num_hidden_layers": 8}, "huginn": HUGINN}
DEPTHS = [(0, 2), (4, 4), (12, 4)]  # recurrent steps without and with gradients


def nanochat_by_hand(steps: int) -> float:
    """Tokens/s of a hand loop with torch's own optimizers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**NANOCHAT), dtype=torch.float32)
    model.config.use_cache = False
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    held = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in held]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=1e-3, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True),
    ]

    def step() -> None:
        ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1))
        logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        loss.item()

    return BATCH * LENGTH / median_seconds(step, steps)


def nanochat_by_flame(steps: int) -> float:
    """Tokens/s that flame reports for the same model, data path and all."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(NANOCHAT))
        return flame_run(file, "float32", steps, BATCH, LENGTH, compiled=False, optimizer__name="Muon")


def median_seconds(step: Callable[[], None], steps: int) -> float:
    """The median time of the last two thirds of some steps."""
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[steps // 3 :])


def pass_times(model: str, steps: int) -> dict[str, float]:
    """Median seconds of a model's passes: ``forward`` and ``train`` of a GPT, or training at each of ``DEPTHS``."""
    import torch

    import flame.compat  # noqa: F401
    from flame.models.build import build_model, model_class
    from flame.models.config import load_config

    torch.manual_seed(0)
    ids = torch.randint(3, 8000, (BATCH, LENGTH))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODELS[model]))
        config, plugin = load_config(folder)
    built: Any = build_model(model_class(plugin, config, "causal_lm"), config)

    def run(train: bool, **inputs: Any) -> Callable[[], None]:
        def step() -> None:
            with torch.set_grad_enabled(train):
                logits = built(input_ids=ids, **inputs).logits
                if train:
                    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
            built.zero_grad()

        return step

    plans = {"forward": run(False), "train": run(True)}
    if model == "huginn":
        plans = {f"{n}+{k}": run(True, num_steps=(n, k)) for n, k in DEPTHS}
    return {name: median_seconds(plan, steps) for name, plan in plans.items()}


def huginn(steps: int) -> dict[str, float]:
    """Measured over predicted step time, by depth.

    Two plain GPTs of different depth give the time of a layer, forward, and forward and backward, and that of the rest.
    """
    shallow, deep, recurrent = (child(f"pass_times:{model}", steps) for model in ("shallow", "deep", "huginn"))
    layers = MODELS["deep"]["num_hidden_layers"] - MODELS["shallow"]["num_hidden_layers"]
    forward, train = ((deep[name] - shallow[name]) / layers for name in ("forward", "train"))
    # The adapter's one matrix [h, 2h], as a share of a layer's matrices: 4 h x h and 3 h x MLP.
    width, mlp = HUGINN["n_embd"], HUGINN["intermediate_size"]
    core = HUGINN["n_layers_in_recurrent_block"] + 2 * width / (4 * width + 3 * mlp)
    return {
        f"{n}+{k}": recurrent[f"{n}+{k}"] / (shallow["train"] + core * (n * forward + k * train)) for n, k in DEPTHS
    }


def child(kind: str, steps: int) -> Any:
    """Runs a measurement in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, "--steps", str(steps)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", choices=["nanochat", "huginn"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, _, model = options.child.partition(":")
        run = {"hand": nanochat_by_hand, "flame": nanochat_by_flame}.get(kind) or partial(pass_times, model)
        print(json.dumps(run(options.steps)))
        return
    if options.only in ("", "nanochat"):
        pairs = [(child("flame", options.steps), child("hand", options.steps)) for _ in range(options.rounds)]
        ratio = statistics.median(flame / hand for flame, hand in pairs)
        for flame, hand in pairs:
            print(f"nanochat d6, Muon: flame {flame:,.0f} tokens/s, hand loop {hand:,.0f}")
        print(f"flame / hand loop: {ratio:.2f}  (goal: at least 1)")
    if options.only in ("", "huginn"):
        rounds = [huginn(options.steps) for _ in range(options.rounds)]
        for depth in rounds[0]:
            ratio = statistics.median(figures[depth] for figures in rounds)
            print(f"huginn, depth {depth}: step time / predicted {ratio:.2f}  (goal: within 15%)")


if __name__ == "__main__":
    main()
