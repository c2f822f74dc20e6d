"""What flame costs on top of a bare loop over the same fla model on a GPU, and how much of the GPU it uses.

    python tests/benchmarks/fla_gpu.py [--rounds 3] [--steps 30] [--only gla,hgrn2] [--lengths 4096,32768]

The 340M shapes of ``configs/`` in bfloat16 with compiled layers, 32,768 tokens per step. Each round trains each
family in turn with a bare loop (fla's model and its own loss, AdamW, clipping, autocast) and with flame, each in a
process of its own.
Printed are the medians over rounds of tokens/s, of flame's ratio to the bare loop of its round, and flame's MFU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ["transformer", "gla", "gated_deltanet", "hgrn2", "mamba2"]
TOKENS = 32768
GOAL = 0.97


def bare_loop(config_file: Path, steps: int, length: int) -> tuple[float, float]:
    """Tokens/s of the smallest loop a person would write over fla's model."""
    import fla.models  # noqa: F401  registers fla's families
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config_file), dtype=torch.float32).cuda()
    for layer in (model.backbone if hasattr(model, "backbone") else model.model).layers:
        layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    times, batch = [], TOKENS // length
    for _ in range(steps):
        ids = torch.randint(0, model.config.vocab_size, (batch, length), device="cuda")
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return TOKENS / statistics.median(times[steps // 2 :]), 0.0


def flame_run(config_file: Path, steps: int, length: int) -> tuple[float, float]:
    """Tokens/s and MFU (in %) that flame itself reports, data path and all."""
    with tempfile.TemporaryDirectory() as folder:
        words = {
            "model.config": config_file,
            "model.tokenizer_path": "builtin:python-stdlib-8k",
            "data.sources": "builtin:python-stdlib",
            "job.dump_folder": folder,
            "training.seq_len": length,
            "training.local_batch_size": TOKENS // length,
            "training.steps": steps,
            "training.dataloader.num_workers": 2,
            "compile.enable": "true",
            "metrics.log_freq": 1,
            "checkpoint.enable": "false",
        }
        command = [sys.executable, "-m", "flame.launch", *(f"--{key}={value}" for key, value in words.items())]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "NGPU": "1"}, cwd=ROOT)
        records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    late = [record for record in records if "tps" in record][steps // 2 :]
    return (statistics.median(record["tps"] for record in late), statistics.median(r.get("mfu", 0.0) for r in late))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", default=",".join(FAMILIES), help="families with commas")
    parser.add_argument("--lengths", default="4096,32768", help="tokens per sequence, with commas")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "CONFIG", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, config, length = options.child
        print(*{"bare": bare_loop, "flame": flame_run}[kind](Path(config), options.steps, int(length)))
        return
    for length in map(int, options.lengths.split(",")):
        for family in options.only.split(","):
            rounds = [compare(family, length, options.steps) for _ in range(options.rounds)]
            ratio = statistics.median(flame / bare for bare, flame, _ in rounds)
            bare, flame, mfu = (statistics.median(figures) for figures in zip(*rounds, strict=True))
            print(
                f"{family:<16} {length:>6}: bare {bare:9,.0f}  flame {flame:9,.0f} tokens/s, {ratio:.3f} of the bare "
                f"loop (goal: {GOAL}), MFU {mfu:.1f}%",
                flush=True,
            )


def compare(family: str, length: int, steps: int) -> tuple[float, float, float]:
    """One round of a family: the bare loop's tokens/s, flame's, and flame's MFU."""
    figures = []
    for kind in ("bare", "flame"):
        config = ROOT / "configs" / f"{family}_340M.json"
        command = [sys.executable, __file__, "--steps", str(steps), "--child", kind, str(config), str(length)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        figures.append([float(word) for word in output.split()[-2:]])
    return figures[0][0], figures[1][0], figures[1][1]


if __name__ == "__main__":
    main()
