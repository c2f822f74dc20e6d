"""How fast fla's families train on a CPU, against the Llama of ``overhead.py``.

    python tests/benchmarks/fla_cpu.py [--rounds 3] [--steps 9] [--dtype float32] [--only gla,hgrn2]

Each round trains, by flame itself and each in a process of its own, the Llama (6 layers, width 384, 6 heads, MLP 1024,
vocabulary 32,768) and the same shape with other token mixers, at batch 4 x 512; then the Llama and GLA at 1 x 4096.
Printed are the medians over rounds of each family's ratio to the Llama of its round.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from overhead import VOCABULARY, flame_run, model_config

WIDTH, LAYERS, HEADS = 384, 6, 6
MIXERS: dict[str, dict[str, Any]] = {
    "gla": {"num_heads": HEADS},
    "hgrn2": {"num_heads": HEADS, "expand_ratio": 64},
    "retnet": {"num_heads": HEADS},
    "gated_deltanet": {"num_heads": HEADS, "head_dim": 48},
    "hgrn": {},
    "delta_net": {"num_heads": HEADS},
    "kda": {"num_heads": HEADS, "head_dim": 64},
    "gsa": {"num_heads": HEADS},
    "rwkv7": {"head_dim": 64},
    "mamba2": {"num_heads": 12, "head_dim": 64, "num_hidden_layers": 2 * LAYERS},
    "transformer": {"num_heads": HEADS},
}
GOALS = {"gla": 0.7, "hgrn2": 0.7, "retnet": 0.7, "gated_deltanet": 0.7, "hgrn": 0.5}
SHAPES = {(4, 512): ["llama", *MIXERS], (1, 4096): ["llama", "gla"]}


def values(family: str) -> dict[str, Any]:
    """The family's config at the shape of the Llama."""
    if family == "llama":
        return {**model_config(on_gpu=False), "max_position_embeddings": 4096}
    shape = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    return {"model_type": family, **shape, **MIXERS[family]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", default=",".join(MIXERS), help="families with commas")
    options = parser.parse_args()
    chosen = {"llama", *options.only.split(",")}
    for (batch, length), families in SHAPES.items():
        speeds: dict[str, list[float]] = {family: [] for family in families if family in chosen}
        if len(speeds) == 1:
            continue
        for _ in range(options.rounds):
            for family, figures in speeds.items():
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "config.json"
                    file.write_text(json.dumps(values(family)))
                    figures.append(flame_run(file, options.dtype, options.steps, batch, length, compiled=False))
                print(f"{batch} x {length}  {family:<16} {figures[-1]:9,.0f} tokens/s", flush=True)
        report(f"{batch} x {length}, {options.dtype}", speeds, GOALS if length == 512 else {"gla": 1.0})


def report(title: str, speeds: dict[str, list[float]], goals: dict[str, float]) -> None:
    """Prints ratios round by round, so that a drift of the machine's speed cancels."""
    print(f"\n{title}: tokens/s, ratio to the Llama [range]")
    for family, figures in speeds.items():
        ratios = [figure / llama for figure, llama in zip(figures, speeds["llama"], strict=True)]
        goal = f"  (goal: {goals[family]})" if family in goals else ""
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"  {family:<16} {statistics.median(figures):8,.0f}  {middle:.2f} [{low:.2f} .. {high:.2f}]{goal}")
    print()


if __name__ == "__main__":
    main()
