"""What flame costs on top of a bare training loop over the same model.

    python tests/benchmarks/overhead.py [--rounds 3] [--steps 12]

Each round trains the same Llama (6 layers, width 384, 6 heads, vocabulary 32,768, batch 4 x 512) in turn with a
minimal hand loop and with flame, each in a process of its own, and takes the median tokens/s of its steps. Printed are
the medians over rounds and flame's ratio to the hand loop in the same type; on a CPU also bfloat16 flame against the
float32 hand loop. On a GPU the model is a 340M Llama in bfloat16 at batch 8 x 2048.
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

CPU_SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
GPU_SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16}
VOCABULARY = 32768


def model_config(on_gpu: bool) -> dict:
    shape = GPU_SHAPE if on_gpu else CPU_SHAPE
    heads = {"num_key_value_heads": shape["num_attention_heads"]}
    return {"model_type": "llama", "vocab_size": VOCABULARY, "max_position_embeddings": 2048, **shape, **heads}


def hand_loop(config_file: Path, dtype: str, steps: int, batch: int, length: int, compiled: bool) -> float:
    """Tokens/s of the smallest loop a person would write: same model, optimizer, clipping and precision."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config_file), dtype=torch.float32).to(device)
    model.config.use_cache = False
    if compiled:
        for layer in model.model.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    times = []
    for _ in range(steps):
        ids = torch.randint(0, VOCABULARY, (batch, length + 1), device=device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        times.append(time.perf_counter() - start)
    return batch * length / statistics.median(times[steps // 3 :])


def flame_run(
    config_file: Path, dtype: str, steps: int, batch: int, length: int, compiled: bool, **more: object
) -> float:
    """Tokens/s that flame itself reports, data path and all; ``more`` are keys of the job, dots as ``__``."""
    with tempfile.TemporaryDirectory() as folder:
        words = {
            "model.config": config_file,
            "model.tokenizer_path": "builtin:python-stdlib-8k",
            "data.sources": "builtin:python-stdlib",
            "job.dump_folder": folder,
            "training.seq_len": length,
            "training.local_batch_size": batch,
            "training.steps": steps,
            "training.mixed_precision_param": dtype,
            "training.dataloader.num_workers": 1,
            "compile.enable": str(compiled).lower(),
            "metrics.log_freq": 1,
            "checkpoint.enable": "false",
            **{key.replace("__", "."): value for key, value in more.items()},
        }
        command = [sys.executable, "-m", "flame.launch", *(f"--{key}={value}" for key, value in words.items())]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "NGPU": "1"})
        records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(record["tps"] for record in records[steps // 3 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="compile each layer, in both")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "DTYPE"), help=argparse.SUPPRESS)
    parser.add_argument("--config", help=argparse.SUPPRESS)
    options = parser.parse_args()

    import torch

    on_gpu = torch.accelerator.is_available()
    batch, length = (8, 2048) if on_gpu else (4, 512)
    if options.child:
        kind, dtype = options.child
        run = {"hand": hand_loop, "flame": flame_run}[kind]
        print(run(Path(options.config), dtype, options.steps, batch, length, options.compile))
        return

    kinds = [
        (kind, dtype) for dtype in (["bfloat16"] if on_gpu else ["float32", "bfloat16"]) for kind in ("hand", "flame")
    ]
    speeds: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(model_config(on_gpu)))
        for _ in range(options.rounds):
            for kind in kinds:
                command = [sys.executable, __file__, "--child", *kind, "--config", f"{folder}/config.json"]
                command += ["--steps", str(options.steps), *(["--compile"] if options.compile else [])]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                speeds[kind].append(float(output.split()[-1]))
                print(f"{kind[0]:>5} {kind[1]:<9} {speeds[kind][-1]:9,.0f} tokens/s", flush=True)
    report(speeds)


def report(speeds: dict[tuple[str, str], list[float]]) -> None:
    """Prints ratios round by round, so that a drift of the machine's speed cancels."""

    def ratio(above: tuple[str, str], below: tuple[str, str]) -> float:
        return statistics.median(a / b for a, b in zip(speeds[above], speeds[below], strict=True))

    print()
    for dtype in dict.fromkeys(dtype for _, dtype in speeds):
        print(f"flame / hand loop, {dtype}: {ratio(('flame', dtype), ('hand', dtype)):.3f}  (goal: at least 0.97)")
    if ("hand", "float32") in speeds:
        gain = ratio(("flame", "bfloat16"), ("hand", "float32"))
        print(f"flame bfloat16 / hand loop float32: {gain:.2f}  (goal on a CPU with fast bfloat16: at least 2)")


if __name__ == "__main__":
    main()
