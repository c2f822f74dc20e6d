"""From ``bash train.sh`` to the first logged step, and where the time goes.

    python tests/benchmarks/startup.py [--rounds 5]

The job is the quickstart's, without validation and checkpoints. Imports are measured alone in a process of their own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = "import time; t = time.perf_counter(); import flame.launch; print(time.perf_counter() - t)"


def imports() -> float:
    return float(subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True).stdout)


def first_step() -> dict[str, float]:
    """Seconds from the start of ``train.sh`` to lines of its log."""
    marks = {"Starting job": "job checked", "Training starts": "trainer ready", "step ": "first step logged"}
    seen: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = ["bash", str(ROOT / "train.sh"), "--job.config_file", "configs/jobs/quickstart.toml"]
        command += [f"--job.dump_folder={folder}", "--training.steps=1", "--validation.enable=false"]
        command += ["--checkpoint.enable=false", "--training.dataloader.num_workers=0"]
        start = time.perf_counter()
        environment = {**os.environ, "PYTHON": sys.executable, "NGPU": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
            assert process.stdout is not None
            for line in process.stdout:
                for mark, name in marks.items():
                    if line[10:].startswith(mark):
                        seen.setdefault(name, time.perf_counter() - start)
        assert process.returncode == 0, process.returncode
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    first_step()  # trains and caches the tokenizer
    runs = [(imports(), first_step()) for _ in range(options.rounds)]
    print(f"imports alone         {statistics.median(seconds for seconds, _ in runs):6.1f} s")
    for name in runs[0][1]:
        print(f"{name:<22}{statistics.median(seen[name] for _, seen in runs):6.1f} s")
    print("(goal: first step logged within 12 s)")


if __name__ == "__main__":
    main()
