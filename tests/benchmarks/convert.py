"""Converts a large checkpoint both ways and compares time with a plain copy, memory with the import baseline.

    python tests/benchmarks/convert.py                # 4 GB of weights and as much optimizer, about 20 GB of disk
    python tests/benchmarks/convert.py --gigabytes 1

Goals: throughput at least half of a plain copy of the bytes written, peak memory at most 1 GiB plus the largest
tensor above the imports, the optimizer never read, every bit the same after both ways. Exit code 1 if one is missed.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict_saver import save

from flame.checkpoint.hf_export import export_hf
from flame.checkpoint.hf_import import import_hf
from flame.checkpoint.layout import step_folder
from flame.checkpoint.safetensors_file import read_header
from flame.checkpoint.storage import StepWriter

GIB = 2**30
LARGEST = (65_536, 2_048)  # fp32: 0.5 GiB, as an embedding is
LAYER = (8_192, 2_048)


def main() -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="bytes of the weights, in 10^9")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's folder for temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        return benchmark(Path(folder), options.gigabytes, options.runs)


def benchmark(folder: Path, gigabytes: float, runs: int) -> int:
    """Measures in ``folder``, prints the figures and returns 1 if a goal is missed."""
    in_process(make_checkpoint, folder, gigabytes)
    figures: dict[str, list[float]] = {}
    for index in range(runs):
        # Copies and conversions take turns, so that the state of the machine is the same for both.
        export = in_process(measure, "export", folder)
        back = in_process(measure, "import", folder)
        copy = in_process(measure, "copy", folder)
        synced = in_process(measure, "synced copy", folder)
        if index == 0:
            same = in_process(same_bits, folder)
        for name, result in (("export", export), ("import", back), ("copy", copy), ("synced copy", synced)):
            for figure, value in result.items():
                figures.setdefault(f"{name} {figure}", []).append(value)
        for name in ("hf", "imported", "copy"):
            shutil.rmtree(folder / name, ignore_errors=True)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    return report(medians, max(figures["export memory"] + figures["import memory"]), same)


def report(medians: dict[str, float], memory: float, same: bool) -> int:
    """Prints the figures and says which goals are met."""
    largest = LARGEST[0] * LARGEST[1] * 4
    copy, model = medians["copy seconds"], medians["copy bytes"]
    print(f"plain copy of {model / 1e9:.2f} GB: {copy:.2f} s; with fsync: {medians['synced copy seconds']:.2f} s")
    goals = {"every bit is the same after both ways": same}
    for way in ("export", "import"):
        ratio = copy / medians[f"{way} seconds"]
        print(
            f"{way}: {medians[f'{way} seconds']:.2f} s, {ratio:.2f} of a plain copy, "
            f"{medians['synced copy seconds'] / medians[f'{way} seconds']:.2f} of one with fsync; "
            f"peak memory {medians[f'{way} memory'] / GIB:.3f} GiB above the imports; "
            f"bytes read / bytes of the model {medians[f'{way} read'] / model:.2f}"
        )
        goals[f"{way}: at least half of a plain copy"] = ratio >= 0.5
    goals["memory: at most 1 GiB and the largest tensor above the imports"] = memory <= GIB + largest
    goals["the optimizer is not read"] = medians["export read"] < 2.1 * model
    for goal, met in goals.items():
        print(f"{'met   ' if met else 'MISSED'} {goal}")
    return 0 if all(goals.values()) else 1


def in_process(function, *arguments):
    """Returns what a function returns in a process of its own, so that memory is counted from the imports on."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """Writes a run with one step: weights, and one optimizer moment for each."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    layers = round((gigabytes * 1e9 / 4 - LARGEST[0] * LARGEST[1]) / (LAYER[0] * LAYER[1]))
    model = {"model.embed_tokens.weight": torch.randn(LARGEST)}
    model |= {f"model.layers.{i}.weight": torch.randn(LAYER) for i in range(layers)}
    moments = {f"state.{name}.exp_avg": tensor for name, tensor in model.items()}
    begin = time.perf_counter()
    save(model | {"optimizer": moments}, storage_writer=StepWriter(step_folder(folder, 1)), no_dist=True)
    nbytes = 2 * sum(tensor.nbytes for tensor in model.values())
    print(f"saved {nbytes / 1e9:.2f} GB in {time.perf_counter() - begin:.2f} s")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))


def measure(what: str, folder: Path) -> dict[str, float]:
    """Returns seconds, peak memory above the imports and bytes read of one conversion or copy."""
    os.sync()  # what the last one wrote is not to be paid for by this one
    memory, read = peak_memory(), bytes_read()
    begin = time.perf_counter()
    if what == "export":
        export_hf(step_folder(folder, 1), folder / "model", folder / "hf", progress=False)
    elif what == "cast":
        export_hf(step_folder(folder, 1), folder / "model", folder / "cast", dtype="bfloat16", progress=False)
    elif what == "import":
        import_hf(folder / "hf", folder / "imported", progress=False)
    else:
        copy_weights(folder, what == "synced copy")
    seconds = time.perf_counter() - begin
    nbytes = sum(path.stat().st_size for path in (folder / "hf").glob("*.safetensors"))
    return {"seconds": seconds, "memory": peak_memory() - memory, "read": bytes_read() - read, "bytes": nbytes}


def copy_weights(folder: Path, sync: bool) -> None:
    """Copies the weights to new files."""
    shutil.rmtree(folder / "copy", ignore_errors=True)
    (folder / "copy").mkdir()
    for path in (folder / "hf").glob("*.safetensors"):
        shutil.copyfile(path, folder / "copy" / path.name)
        if sync:
            with open(folder / "copy" / path.name, "rb") as file:
                os.fsync(file.fileno())


def same_bits(folder: Path) -> bool:
    """Whether a second export, from the imported step, has the same files as the first."""
    export_hf(step_folder(folder / "imported", 0), folder / "model", folder / "again", progress=False)
    same = True
    for path in (folder / "hf").glob("*.safetensors"):
        again = folder / "again" / path.name
        same &= read_header(path) == read_header(again) and equal_files(path, again)
    shutil.rmtree(folder / "again")
    return same


def equal_files(first: Path, second: Path) -> bool:
    """Whether two files have the same bytes."""
    with open(first, "rb") as a, open(second, "rb") as b:
        while piece := a.read(2**20):
            if piece != b.read(2**20):
                return False
        return not b.read(1)


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def bytes_read() -> int:
    """Bytes this process has read, from the disk or its cache; 0 where the system does not tell."""
    counters = Path("/proc/self/io")
    return int(counters.read_text().split()[1]) if counters.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
