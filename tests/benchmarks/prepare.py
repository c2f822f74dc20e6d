"""What preparing a corpus costs: throughput of the whole, and whether the cost per document stays as inputs grow.

    python tests/benchmarks/prepare.py --megabytes 10 100

Made-up prose goes through all default steps, to parquet, with as many workers as there are cores. The peer is reading
the same files and counting their words, in one process.
"""

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_WORD = re.compile(r"\w+|[^\w\s]")
_FILES = 8


def write_corpus(folder: Path, megabytes: float, seed: int = 0) -> int:
    """Writes jsonl files of distinct documents, some of them twice; returns the number of documents."""
    drawn = random.Random(seed)
    vocabulary = ["the", "of", "and", "to", "that", "have", "with", "be", "in", "for", "on", "as"] * 20
    vocabulary += ["".join(drawn.choices("abcdefghiklmnoprstuvw", k=drawn.randint(3, 9))) for _ in range(5000)]
    folder.mkdir(parents=True)
    count, last = 0, ""
    for number in range(_FILES):
        with open(folder / f"part{number}.jsonl", "w", encoding="utf-8") as file:
            size = 0
            while size < megabytes * 1e6 / _FILES:
                if count % 20 or not last:
                    words = (drawn.choices(vocabulary, k=drawn.randint(8, 20)) for _ in range(drawn.randint(8, 60)))
                    last = "\n".join(" ".join(line).capitalize() + "." for line in words)
                size += file.write(json.dumps({"text": last}) + "\n")
                count += 1
    return count


def count_words(folder: Path) -> float:
    """Seconds that the peer takes."""
    begin = time.perf_counter()
    words = 0
    for path in sorted(folder.iterdir()):
        with open(path, encoding="utf-8") as file:
            words += sum(len(_WORD.findall(json.loads(line)["text"])) for line in file)
    assert words
    return time.perf_counter() - begin


def prepare(folder: Path, corpus: Path) -> tuple[float, dict[str, float], dict]:
    """Prepares a corpus; returns seconds of the whole, of its stages, and the report."""
    job = folder / "job.toml"
    job.write_text(
        f'inputs = [{{ path = "{corpus}", name = "corpus" }}]\n'
        f'output = {{ folder = "{folder}/out", format = "parquet" }}\nexecutor = {{ task_bytes = 4_000_000 }}\n'
    )
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "flame.cli", "data", "prepare", job], check=True, capture_output=True)
    seconds = time.perf_counter() - begin
    found = json.loads((folder / "out" / "report.json").read_text())
    return seconds, found["seconds"], found


def main() -> None:
    """Measures every size and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10, 100])
    sizes = parser.parse_args().megabytes
    print("| MB | documents | seconds | MB/s | us per document | times the peer | stages |")
    print("|---:|---:|---:|---:|---:|---:|---|")
    for megabytes in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            documents = write_corpus(folder / "corpus", megabytes)
            peer = count_words(folder / "corpus")
            seconds, stages, found = prepare(folder, folder / "corpus")
            assert found["read"]["documents"] == documents
            longest = sorted(stages.items(), key=lambda entry: -entry[1])[:4]
            shown = ", ".join(f"{stage} {spent:.1f}" for stage, spent in longest)
            per_document = 1e6 * sum(stages.values()) / documents  # of the stages: starting takes some seconds
            row = [f"{megabytes:g}", f"{documents:,}", f"{seconds:.1f}", f"{megabytes / seconds:.2f}"]
            print("| " + " | ".join([*row, f"{per_document:.0f}", f"{seconds / peer:.1f}", shown]) + " |")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\nLargest process: {peak:.0f} MiB.")


if __name__ == "__main__":
    main()
