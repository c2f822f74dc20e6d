"""What tiny models of different families learn from the same tokens: bits per byte on held-out text, and the curves.

    python tests/benchmarks/learn.py [--folder exp/learn] [--only llama,huginn] [--plot docs/images/tiny_jobs.svg]

Trains the jobs ``configs/jobs/tiny_*.toml`` one after the other (nanochat also with AdamW at three learning rates), all
on 0.8M tokens of the standard library's source text, and prints a table. Runs that have finished in the folder are not
repeated. The plot needs matplotlib (``pip install "flame[plots]"``).
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Learner:
    """One run: a job and what it changes."""

    job: str
    changes: dict[str, Any] = field(default_factory=dict)


LEARNERS = {
    "llama": Learner("tiny_llama"),
    "nanochat-muon": Learner("tiny_nanochat"),
    **{
        f"nanochat-adamw-{lr}": Learner("tiny_llama", {"model.config": "nanochat_tiny", "optimizer.lr": lr})
        for lr in ("3e-3", "1e-2", "3e-2")
    },
    "huginn": Learner("tiny_huginn"),
    "llada": Learner("tiny_llada"),
    "llada-adamw": Learner(
        "tiny_llada", {"optimizer.name": "AdamW", "optimizer.lr": "3e-3", "optimizer.beta2": "0.98"}
    ),
    "llada-blocks": Learner("tiny_llada", {"model.config": "llada_blocks_tiny"}),
    "deepseek": Learner("tiny_deepseek"),
    "sba": Learner("tiny_sba"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("exp/learn"))
    parser.add_argument("--only", default="", help="runs with commas; all if left out")
    parser.add_argument("--plot", type=Path, help="where to draw the curves (.svg, .png)")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(LEARNERS)
    curves = {}
    for name in names:
        learned(LEARNERS[name], options.folder / name)
        curves[name] = records(options.folder / name)
        print(row(name, options.folder / name), flush=True)
    if options.plot:
        draw(curves, options.plot)


def learned(learner: Learner, folder: Path) -> None:
    """Trains a run unless it has finished."""
    if (folder / "seconds.txt").is_file():
        return
    words = {"job.config_file": ROOT / f"configs/jobs/{learner.job}.toml", "job.dump_folder": folder, **learner.changes}
    start = time.monotonic()
    command = [sys.executable, "-m", "flame.launch", *(f"--{key}={value}" for key, value in words.items())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    (folder / "seconds.txt").write_text(f"{time.monotonic() - start:.0f}\n")


def records(folder: Path) -> list[dict[str, Any]]:
    """The reports of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def row(name: str, folder: Path) -> str:
    """A line of the table: validation bits per byte at the end, minutes, and what else the last reports hold."""
    figures: dict[str, Any] = {}
    for record in records(folder):
        figures.update(record)
    shown = {key: value for key, value in figures.items() if key.startswith("val_bpb") or key == "expert_load"}
    minutes = float((folder / "seconds.txt").read_text()) / 60
    return f"{name:<24}" + "  ".join(f"{key} {value:.4f}" for key, value in shown.items()) + f"  {minutes:.1f} min"


def draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Validation bits per byte over tokens, one line a run."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, reports in curves.items():
        tokens = {report["step"]: report["tokens"] for report in reports if "tokens" in report}
        points = [(tokens[report["step"]], report["val_bpb"]) for report in reports if "val_bpb" in report]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes.set(xlabel="tokens", ylabel="validation bits per byte", title="The same 0.8M tokens, tiny models")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
