"""Proves, before a job trains, that its layout computes what one device does.

The ranks lay a scaled-down model of the family out in the job's own way, run one batch through it by the job's own
code, and compare loss and every gradient with the model in one piece. That takes seconds, and is remembered by family,
layout and versions.
"""

import copy
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import lcm
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel

from flame import compat
from flame.config import JobConfig
from flame.data.batch import Batch, rows_of, to_device
from flame.errors import ConfigError
from flame.models.build import build_model, plain_model
from flame.models.config import shrink
from flame.models.handout import hand_out
from flame.models.trial import stir
from flame.ops.install import REQUEST
from flame.parallel.checks import find_anatomy
from flame.parallel.division import divide_layers, stage_layers
from flame.parallel.layout import Layout
from flame.parallel.passes import Passes, build_passes
from flame.parallel.reduce import sum_over_data
from flame.parallel.split import Anatomy, layer_stack
from flame.pieces import part_of
from flame.tasks.base import Task
from flame.tokenizer.cache import cache_folder

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest relative difference of loss or a gradient; sums in another order differ by 1e-6 in float32."""

_LENGTH = 96  # at least so many positions: fla's layers run other kernels up to 64
_PACKAGES = ("flame", "torch", "transformers", "flash-linear-attention")


@dataclass
class Trial:
    """What is tried: a family, in the way a job lays it out."""

    model_class: type[PreTrainedModel]
    model_config: PreTrainedConfig
    task: Task
    config: JobConfig
    layout: Layout

    @property
    def needed(self) -> bool:
        """Whether anything but data is split."""
        return max(self.layout.tp, self.layout.pp, self.layout.cp, self.layout.ep) > 1


def preflight(trial: Trial) -> None:
    """Compares a small model under the job's layout with one device; collective over all ranks.

    Raises:
        ConfigError: they differ, or the layout does not run; the message names the first parameter that differs.
    """
    wish = trial.config.parallelism.preflight
    if not trial.needed or wish == "off":
        return
    record = cache_folder() / "preflight" / f"{_digest(trial)}.json"
    known = [dist.get_rank() == 0 and record.is_file()]
    dist.broadcast_object_list(known)
    if known[0] and wish == "auto":
        return
    with torch.random.fork_rng(devices=[]):
        worst = compare(trial)
    log.info("preflight: %s computes what one device does (largest difference %.0e)", describe(trial.layout), worst)
    if dist.get_rank() == 0:
        _remember(record, {"family": trial.model_config.model_type, "worst": worst, **_subject(trial)})


def compare(trial: Trial) -> float:
    """Runs one batch both ways; returns the largest relative difference over loss and gradients.

    Raises:
        ConfigError: see ``preflight``.
    """
    small, config, found = _small(trial)
    device = torch.device(compat.DEVICE_TYPE, compat.DEVICE_MODULE.current_device())
    inputs, labels = _batch(trial, small, config)
    divisor = float(trial.task.scored(inputs, labels))
    start = stir(plain_model(trial.model_class, small, seed=0).eval())
    reference: Any = copy.deepcopy(start)
    reference.to(device)
    loss = trial.task.loss_sum(reference, *to_device((inputs, labels), device)) / divisor
    loss.backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    try:
        passes = _laid_out(trial, start, config, found, device)
        mine = _rows_of(trial.layout, (inputs, labels), config.training.local_batch_size)
        share = passes.train(*to_device(mine, device), divisor)
        passes.finish_gradients()
        total = sum_over_data({"loss": share}, trial.layout, shares=True)["loss"]
        differences = {"the loss": abs(total - loss.item()) / abs(loss.item())}
        differences |= dict(_differences(passes, expected))
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ConfigError(_refusal(trial, f"does not run ({type(error).__name__}: {reason})")) from error
    return _verdict(trial, differences, list(expected))


def _remember(record: Path, what: dict[str, Any]) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(what, default=str))
    except OSError as error:
        log.warning("the preflight will be repeated, because %s cannot be written: %s", record, error.strerror)


def describe(layout: Layout) -> str:
    """The layout in a few words."""
    degrees = {
        "replicas": layout.dp_replicate,
        "shards": layout.dp_shard,
        "tensor": layout.tp,
        "pipeline": layout.pp,
        "context": layout.cp,
        "expert": layout.ep,
    }
    return " x ".join(f"{name} {degree}" for name, degree in degrees.items() if degree > 1)


def _small(trial: Trial) -> tuple[PreTrainedConfig, JobConfig, Anatomy | None]:
    """The scaled-down model's config, the job that trains it, and what runs where in it."""
    config, layout = copy.deepcopy(trial.config), trial.layout
    config.training.mixed_precision_param = "float32"
    config.training.enable_cpu_offload = False
    config.compile.enable = False
    config.training.local_batch_size = _microbatches(config) if layout.pp > 1 else 2
    config.parallelism.pipeline_parallel_microbatch_size = 1
    config.training.seq_len = 2 * layout.cp * -(-_LENGTH // (2 * layout.cp))
    found = find_anatomy(trial.model_class, trial.model_config) if layout.pp > 1 else None
    stages = len(stage_layers(config, _depth(trial, trial.model_config), found)) if found is not None else 0
    exchanged = layout.cp if config.parallelism.context_parallel_rotate_method == "alltoall" else 1
    small = shrink(trial.model_config, layers=stages, divisor=lcm(layout.tp * exchanged, layout.ep))
    small._attn_implementation = trial.model_config._attn_implementation
    if found is not None:
        _cut_small(config, found, stages, _depth(trial, small))
    return small, config, found


def _cut_small(config: JobConfig, found: Anatomy, stages: int, layers: int) -> None:
    """Gives the small job as many stages as the large one has."""
    leaf, division = found.layers.rpartition(".")[2], divide_layers(layers, stages, 0, 0)
    config.parallelism.module_fqns_per_model_part = [[f"{leaf}.{n}" for n in numbers] for numbers in division]


def _microbatches(config: JobConfig) -> int:
    """How many micro-batches the small job's schedule gets: the large one's, or as many as show every kind of turn."""
    layout = config.parallelism
    count = config.training.local_batch_size // layout.pipeline_parallel_microbatch_size
    return min(count, 4 * layout.pipeline_parallel_degree)


def _depth(trial: Trial, model_config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return len(layer_stack(build_model(trial.model_class, model_config)))


def _batch(trial: Trial, small: PreTrainedConfig, config: JobConfig) -> Batch:
    """A batch for all ranks together, the same on each; documents cross the borders of sequence parts under varlen."""
    generator = torch.Generator().manual_seed(0)
    rows = config.training.local_batch_size * trial.layout.dp_replicate * trial.layout.dp_shard
    length = config.training.seq_len
    inputs, labels = trial.task.sample(small, rows, length, generator)
    if trial.config.training.varlen:
        starts = torch.rand(rows, length, generator=generator) < 4 / length
        starts[:, 0] = True
        begin = torch.where(starts, torch.arange(length), 0).cummax(1).values
        inputs["position_ids"] = torch.arange(length) - begin
    return trial.task.prepare({**inputs, **trial.task.draw(generator)}, labels, generator)


def _rows_of(layout: Layout, batch: Batch, rows: int) -> Batch:
    """The rows of the batch that this rank reads."""
    rank = layout.get_mesh("batch").get_local_rank() if layout.dp_enabled else 0
    return rows_of(batch, slice(rank * rows, (rank + 1) * rows))


def _laid_out(
    trial: Trial, start: PreTrainedModel, config: JobConfig, found: Anatomy | None, device: torch.device
) -> Passes:
    with torch.device("meta"):
        model = build_model(trial.model_class, start.config)
    passes = build_passes(model, trial.layout, config, device, trial.task, found)
    for part in passes.parts:
        part.to_empty(device=device)
        hand_out(part, start if dist.get_rank() == 0 else None, buffer_device=None)
        part.eval()
    return passes


def _differences(passes: Passes, expected: dict[str, torch.Tensor | None]) -> Iterator[tuple[str, float]]:
    """Relative differences of this rank's gradients; tiny gradients count by the size of all together."""
    known = [gradient for gradient in expected.values() if gradient is not None]
    floor = 1e-3 * torch.stack([gradient.norm() for gradient in known]).max().item()
    for part in passes.parts:
        for name, parameter in part.named_parameters():
            name = name.replace("_checkpoint_wrapped_module.", "")
            gradient, right = parameter.grad, expected[name]
            size = max(right.norm().item() if right is not None else 0.0, floor)
            if isinstance(gradient, DTensor):
                right = part_of(gradient, right) if right is not None else None
                gradient = gradient.to_local()
            if gradient is not None and right is not None:
                yield name, (gradient - right).norm().item() / size
            else:  # what one side does not use, the other must not either
                yield name, sum(value.norm().item() for value in (gradient, right) if value is not None) / size


def _verdict(trial: Trial, differences: dict[str, float], order: list[str]) -> float:
    """The largest difference over all ranks.

    Raises:
        ConfigError: it is too large.
    """
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, differences)
    worst: dict[str, float] = {}
    for rank in ranks:
        for name, value in rank.items():
            worst[name] = max(worst.get(name, 0.0), value if value == value else float("inf"))
    wrong = [name for name in [*order, "the loss"] if worst.get(name, 0.0) > TOLERANCE]
    if wrong:
        what = f"gradient of {wrong[0]}" if wrong[0] != "the loss" else wrong[0]
        raise ConfigError(
            _refusal(
                trial,
                f"differs from one device: the {what.removeprefix('the ')} by {worst[wrong[0]]:.0e}, "
                f"{len(wrong)} of {len(order) + 1} figures in all",
            )
        )
    return max(worst.values())


def _refusal(trial: Trial, what: str) -> str:
    causes = {
        "tensor": "its tensor-parallel plan leaves something out",
        "pipeline": "its layers share more than the hidden states",
        "context": "something in it but attention looks along the sequence, or its attention is not transformers'",
        "expert": "its expert-parallel plan leaves something out",
    }
    layout = trial.layout
    degrees = {"tensor": layout.tp, "pipeline": layout.pp, "context": layout.cp, "expert": layout.ep}
    cause = " or ".join(causes[name] for name, degree in degrees.items() if degree > 1)
    return (
        f"family '{trial.model_config.model_type}' under {describe(layout)} {what}; the likely cause: {cause}. Use "
        "another layout (docs/parallelism.md lists what is proven), or parallelism.preflight = 'off' to train anyway"
    )


def _subject(trial: Trial) -> dict[str, Any]:
    """Everything the outcome depends on."""
    layout = trial.layout
    degrees = {name: getattr(layout, name) for name in ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep")}
    source = inspect.getsourcefile(trial.model_class.__mro__[2])
    rooms = [
        Path(__file__).parent,
        *(Path(__file__).parents[1] / name for name in ("ops", "models", "models/families")),
    ]
    files = [file for room in rooms for file in sorted(room.glob("*.py"))] + ([Path(source)] if source else [])
    return {
        "layout": {**asdict(trial.config.parallelism), **degrees, "preflight": None},
        "model": shrink(trial.model_config).to_dict(),
        "attention": trial.model_config._attn_implementation,
        "class": trial.model_class.__name__,
        "code": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest(),
        "task": asdict(trial.config.task),
        "varlen": trial.config.training.varlen,
        "recompute": asdict(trial.config.activation_checkpoint),
        "device": compat.DEVICE_TYPE,
        "ops": os.environ.get(REQUEST),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _digest(trial: Trial) -> str:
    return hashlib.sha256(json.dumps(_subject(trial), sort_keys=True, default=str).encode()).hexdigest()[:32]
