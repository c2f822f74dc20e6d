"""DCP step -> HuggingFace folder, streaming: memory does not grow with the model, the optimizer is never read.

    python -m flame.utils.convert_dcp_to_hf --path exp/quickstart

Every output file gets its final size and header first; then a few threads copy (and cast) rows from the step into
their places. The folder is built beside and renamed, so it exists only once it is complete.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from flame.checkpoint.hf_card import model_card
from flame.checkpoint.jobs import run_jobs, workers_for
from flame.checkpoint.layout import MANIFEST, partial_folder, publish, read_manifest, step_of
from flame.checkpoint.safetensors_file import NAMES, PIECE_BYTES, SafetensorsWriter, as_bytes, start_flush, write_all
from flame.checkpoint.stored import StoredStep, StoredTensor
from flame.errors import CheckpointError

JOB_BYTES = 32 * 1024 * 1024
CAST_NUMEL = 32_768  # torch casts up to this many values without its thread pool, which would fight with ours
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".safetensors.index.json", ".bin.index.json")
# Sums of many small steps (the selection bias of experts), which the hub keeps in float32 too.
_KEPT_FLOAT32 = ("e_score_correction_bias",)

Sizes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def export_hf(
    step_folder: Path,
    assets_folder: Path,
    out_folder: Path,
    dtype: torch.dtype | str | None = None,
    max_shard_size: str | int = "5GB",
    card: Mapping[str, Any] | None = None,
    progress: bool = True,
    tied: Mapping[str, str] | None = None,
    rename: Callable[[str], str] | None = None,
) -> Path:
    """Writes the model of a step as a HuggingFace folder.

    Args:
        step_folder: A DCP step, saved by flame, torchtitan or upstream flame.
        assets_folder: Holds ``config.json`` and what else belongs beside the weights (tokenizer, modeling code).
        out_folder: The folder to make; one that an earlier export made is replaced.
        dtype: Type of the floating-point tensors, such as ``"bfloat16"``; ``None`` keeps each as it is stored.
        max_shard_size: Largest size of one file, such as ``"5GB"`` or a number of bytes.
        card: What the model card states (data, losses ...), as title -> value.
        progress: Whether to show a progress bar.
        tied: Names not to write, because they share storage with another; default: as the step's manifest and
            ``tie_word_embeddings`` of the config say.
        rename: Turns a parameter's name in the step into its name in the folder.

    Returns:
        ``out_folder``.

    Raises:
        CheckpointError: The step, the assets or the options cannot be used.
        DamagedStepError: A tensor of the step is not what was written.
    """
    config = _read_config(assets_folder)
    _check_replaceable(out_folder)
    target = _dtype(dtype)
    with StoredStep(step_folder) as step:
        names = _names_to_write(step, _tied(step_folder, config) if tied is None else tied)
        sources = {(rename or str)(name): name for name in names}
        sizes = {
            name: _cast_size(step.size(source), None if name.endswith(_KEPT_FLOAT32) else target)
            for name, source in sources.items()
        }
        shards = split_shards(sizes, parse_size(max_shard_size))
        building = partial_folder(out_folder)
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        _write_weights(step, building, shards, sources, out_folder.name if progress else "")
    _write_index(building, shards)
    _copy_assets(assets_folder, building, config, sizes)
    text = model_card(out_folder, step_of(step_folder), config, _parameters(sizes), card or {})
    (building / "README.md").write_text(text, encoding="utf-8")
    publish(building, out_folder)
    return out_folder


def parse_size(size: str | int) -> int:
    """Returns a number of bytes from ``"5GB"``, ``"200MiB"`` or a number.

    Raises:
        CheckpointError: It cannot be read or is not positive.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[1].count(".") > 1 or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise CheckpointError(f"max_shard_size '{size}' is not a size: write it like 5GB, 500MB or 2GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def split_shards(sizes: Sizes, limit: int) -> dict[str, Sizes]:
    """Returns file name -> its tensors, filled in order up to ``limit`` bytes; a larger tensor gets its own file."""
    groups: list[Sizes] = [{}]
    filled = 0
    for name, (dtype, shape) in sizes.items():
        nbytes = prod(shape) * dtype.itemsize
        if groups[-1] and filled + nbytes > limit:
            groups.append({})
            filled = 0
        groups[-1][name] = (dtype, shape)
        filled += nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _read_config(assets_folder: Path) -> dict[str, Any]:
    path = assets_folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: name the model's config with --config")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None


def _check_replaceable(out_folder: Path) -> None:
    if out_folder.exists() and not (out_folder / "config.json").is_file() and any(out_folder.iterdir()):
        raise CheckpointError(f"{out_folder} exists and is not a HuggingFace folder: name another output folder")


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    target = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and (not isinstance(target, torch.dtype) or not target.is_floating_point):
        raise CheckpointError(f"dtype '{dtype}' is not known: choose float32, bfloat16 or float16")
    return target


def _tied(step_folder: Path, config: Mapping[str, Any]) -> Mapping[str, str]:
    if (step_folder / MANIFEST).is_file():
        return read_manifest(step_folder).get("tied", {})
    return {"lm_head.weight": "model.embed_tokens.weight"} if config.get("tie_word_embeddings") else {}


def _names_to_write(step: StoredStep, tied: Mapping[str, str]) -> list[str]:
    names = step.names()
    if not names:
        raise CheckpointError(f"{step.folder} holds no model")
    return [name for name in names if tied.get(name) not in names]


def _cast_size(size: tuple[torch.dtype, tuple[int, ...]], target: torch.dtype | None) -> tuple:
    dtype, shape = size
    dtype = target if target is not None and dtype.is_floating_point else dtype
    if dtype not in NAMES:
        raise CheckpointError(f"safetensors cannot hold {dtype}: choose another dtype")
    return dtype, shape


def _parameters(sizes: Sizes) -> int:
    return sum(prod(shape) for _, shape in sizes.values())


def _write_weights(
    step: StoredStep, folder: Path, shards: Mapping[str, Sizes], sources: Mapping[str, str], title: str
) -> None:
    writers = {name: SafetensorsWriter(folder / name, tensors) for name, tensors in shards.items()}
    jobs = (
        job
        for file_name, tensors in shards.items()
        for name, (dtype, _) in tensors.items()
        for job in _copy_jobs(step, sources[name], writers[file_name], name, dtype)
    )
    sizes = [size for tensors in shards.values() for size in tensors.values()]
    total = sum(prod(shape) * dtype.itemsize for dtype, shape in sizes)
    # A tensor that is sharded across its rows is put together a row at a time; a job holds up to three such rows.
    largest_row = max(prod(shape[1:]) * dtype.itemsize for dtype, shape in map(step.size, sources.values()))
    try:
        run_jobs(jobs, workers_for(3 * largest_row), total, title, progress=bool(title))
    finally:
        for writer in writers.values():
            writer.close()


def _copy_jobs(
    step: StoredStep, source: str, writer: SafetensorsWriter, name: str, dtype: torch.dtype
) -> Iterator[Callable[[], int]]:
    tensor = step.tensor(source).flat()
    rows_per_job = max(1, JOB_BYTES // max(tensor.row_bytes, 1))
    if any(block.data_offset < 0 for block in tensor.blocks):
        rows_per_job = max(1, tensor.shape[0])
    for start in range(0, tensor.shape[0], rows_per_job):
        stop = min(start + rows_per_job, tensor.shape[0])
        yield partial(_copy_rows, step, tensor, start, stop, writer, writer.offset(name), dtype)


def _copy_rows(
    step: StoredStep,
    tensor: StoredTensor,
    start: int,
    stop: int,
    writer: SafetensorsWriter,
    offset: int,
    dtype: torch.dtype,
) -> int:
    written_row = tensor.row_bytes // tensor.dtype.itemsize * dtype.itemsize
    in_order = all(block.data_offset >= 0 for block in tensor.blocks)
    rows_per_piece = max(1, PIECE_BYTES // max(tensor.row_bytes, 1)) if in_order else stop - start
    # One buffer for all pieces of a job: memory fresh from the system costs more than the copy itself.
    buffer = torch.empty((min(rows_per_piece, stop - start), *tensor.shape[1:]), dtype=tensor.dtype)
    cast = buffer if dtype == tensor.dtype else torch.empty_like(buffer, dtype=dtype)
    parts = list(zip(cast.flatten().split(CAST_NUMEL), buffer.flatten().split(CAST_NUMEL), strict=True))
    for first in range(start, stop, rows_per_piece):
        count = min(rows_per_piece, stop - first)
        step.read_rows(tensor, first, buffer[:count])
        if cast is not buffer:
            for target, source in parts:
                target.copy_(source)
        write_all(writer.descriptor, as_bytes(cast[:count]), offset + first * written_row)
    written = (stop - start) * written_row
    start_flush(writer.descriptor, offset + start * written_row, written)
    return written


def _write_index(folder: Path, shards: Mapping[str, Sizes]) -> None:
    if len(shards) == 1:
        return
    sizes = [size for tensors in shards.values() for size in tensors.values()]
    index = {
        "metadata": {"total_size": sum(prod(shape) * dtype.itemsize for dtype, shape in sizes)},
        "weight_map": {name: file for file, tensors in shards.items() for name in tensors},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_assets(assets_folder: Path, folder: Path, config: Mapping[str, Any], sizes: Sizes) -> None:
    """Copies everything but weights; the config states the type that holds most of the floating-point bytes."""
    nbytes: dict[torch.dtype, int] = {}
    for dtype, shape in sizes.values():
        if dtype.is_floating_point:
            nbytes[dtype] = nbytes.get(dtype, 0) + prod(shape) * dtype.itemsize
    for path in sorted(assets_folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(WEIGHT_FILES):
            shutil.copyfile(path, folder / path.name)
    stated = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    if nbytes:
        stated["dtype"] = str(max(nbytes, key=lambda dtype: nbytes[dtype])).removeprefix("torch.")
    with open(folder / "config.json", "w", encoding="utf-8") as file:
        file.write(json.dumps(stated, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
