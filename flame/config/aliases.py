"""Keys with another name or no use here: upstream flame's names, and keys of torchtitan that flame does not read.

Upstream's published job files and commands run unchanged through these tables; a key that would be ignored is refused
instead, with what to use in its place.
"""

import logging
from dataclasses import dataclass, fields
from typing import Any

from torchtitan.config import job_config as titan

from flame.errors import ConfigError

logger = logging.getLogger(__name__)

ALIASES: dict[str, str] = {
    "job.print_args": "job.print_config",
    "lr_scheduler.lr_min": "lr_scheduler.min_lr_factor",
    "training.batch_size": "training.local_batch_size",
    "training.skip_nan_inf": "guard.skip_nan_inf",
    "training.num_workers": "training.dataloader.num_workers",
    "training.prefetch_factor": "training.dataloader.prefetch_factor",
    "training.pin_memory": "training.dataloader.pin_memory",
    "training.persistent_workers": "training.dataloader.persistent_workers",
    "training.data_parallel_replicate_degree": "parallelism.data_parallel_replicate_degree",
    "training.data_parallel_shard_degree": "parallelism.data_parallel_shard_degree",
    "training.tensor_parallel_degree": "parallelism.tensor_parallel_degree",
    "training.disable_loss_parallel": "parallelism.disable_loss_parallel",
    "training.fsdp_reshard_after_forward": "parallelism.fsdp_reshard_after_forward",
    "training.compile": "compile.enable",
    "training.seed": "debug.seed",
    "training.deterministic": "debug.deterministic",
    "experimental.enable_async_tensor_parallel": "parallelism.enable_async_tensor_parallel",
    "experimental.pipeline_parallel_degree": "parallelism.pipeline_parallel_degree",
    "experimental.pipeline_parallel_schedule": "parallelism.pipeline_parallel_schedule",
    "experimental.pipeline_parallel_schedule_csv": "parallelism.pipeline_parallel_schedule_csv",
    "experimental.context_parallel_degree": "parallelism.context_parallel_degree",
    "experimental.context_parallel_rotate_method": "parallelism.context_parallel_rotate_method",
    "experimental.custom_model_path": "model.plugin_path",
    "checkpoint.enable_checkpoint": "checkpoint.enable",
    "checkpoint.initial_load_model_weights_only": "checkpoint.initial_load_model_only",
    "checkpoint.last_save_model_weights_only": "checkpoint.last_save_model_only",
    "checkpoint.export_dtype": "export.dtype",
    "float8.enable_fsdp_float8_all_gather": "quantize.linear.float8.enable_fsdp_float8_all_gather",
    "float8.precompute_float8_dynamic_scale_for_fsdp": (
        "quantize.linear.float8.precompute_float8_dynamic_scale_for_fsdp"
    ),
    "float8.recipe_name": "quantize.linear.float8.recipe_name",
}
"""Upstream's name of a key -> its canonical name; the values mean the same."""

CORPUS_ALIASES: dict[str, str] = {
    "training.dataset": "path",
    "training.dataset_name": "name",
    "training.dataset_split": "split",
    "training.data_dir": "data_dir",
    "training.data_files": "data_files",
    "training.data_probs": "weight",
    "training.streaming": "streaming",
}
"""Upstream's lists of corpora, one comma-separated list per property -> the field of a ``[[data.sources]]`` table."""

UNUSED_SECTIONS = ("memory_estimation", "fault_tolerance", "experimental")
"""Sections of torchtitan's JobConfig that flame leaves as they are."""


@dataclass(frozen=True)
class Refusal:
    """A key without effect: what to do instead, and the values at which it may stand because they ask for nothing."""

    remedy: str
    harmless: tuple[Any, ...] = ()
    warn: bool = False


_NO_EFFECT = "it has no effect; remove it"
_SOURCES = "list the corpora as [[data.sources]] tables"
_HELD_OUT = "list the held-out corpora as [[validation.sources]] tables"

REFUSED: dict[str, Refusal] = {
    "job.config_file": Refusal("a job file cannot name another; give --job.config_file on the command line"),
    "job.custom_config_module": Refusal("options of a task go into [task]; a family is found by model.config"),
    "job.use_for_integration_test": Refusal(_NO_EFFECT, harmless=(False, True), warn=True),
    "model.flavor": Refusal("set model.config to a JSON file, a shipped config or a hub id"),
    "model.hf_assets_path": Refusal("set model.tokenizer_path, and checkpoint.initial_load_path for weights"),
    "training.dataset_path": Refusal(_SOURCES),
    "validation.dataset": Refusal(_HELD_OUT),
    "validation.dataset_path": Refusal(_HELD_OUT),
    "validation.seq_len": Refusal("validation rows have training.seq_len tokens; remove it"),
    "optimizer.early_step_in_backward": Refusal(
        "gradients could be neither clipped nor checked before the step; remove it", harmless=(False,)
    ),
    "checkpoint.enable_ft_dataloader_checkpoints": Refusal("there is no fault tolerance here; remove it"),
    "checkpoint.create_seed_checkpoint": Refusal(
        "weights start the same in every layout; remove it", harmless=(False,)
    ),
    "comm.mode": Refusal("a dry run trains nothing; remove it", harmless=("default",)),
    "compile.components": Refusal("compile.enable compiles each layer, and nothing else; remove it"),
    "checkpoint.interval_type": Refusal("checkpoint.interval counts steps; remove it", harmless=("steps",), warn=True),
    "checkpoint.model_weights_only": Refusal("use checkpoint.last_save_model_only", harmless=(False,), warn=True),
    "checkpoint.last_save_in_hf": Refusal("the last step is exported by export.enable", harmless=(False,)),
    "checkpoint.initial_load_in_hf_quantized": Refusal("load weights that are not quantized", harmless=(False,)),
    "activation_offload.mode": Refusal("use activation_checkpoint.mode = 'full' to save memory", harmless=("none",)),
    "float8.force_recompute_fp8_weight_in_bwd": Refusal("torchao recomputes by itself", harmless=(False,)),
    "experimental.enable_compiled_autograd": Refusal("use compile.enable", harmless=(False,)),
    "experimental.pipeline_parallel_split_points": Refusal(
        "use parallelism.module_fqns_per_model_part", harmless=([], "")
    ),
    "experimental.pipeline_parallel_microbatches": Refusal("use parallelism.pipeline_parallel_microbatch_size"),
    "experimental.custom_import": Refusal("use model.plugin_path"),
    "experimental.custom_args_module": Refusal("options of a task go into [task]"),
    "debug.moe_force_load_balance": Refusal("the router belongs to the model; remove it", harmless=(False,)),
    "memory_estimation.enabled": Refusal("there is no estimate without a run; remove it", harmless=(False,)),
    **{
        f"memory_estimation.{key.name}": Refusal("there is no estimate without a run; remove it", (key.default,))
        for key in fields(titan.MemoryEstimation)
    },
    **{
        f"fault_tolerance.{key.name}": Refusal("there is no fault tolerance here; remove the section", (key.default,))
        for key in fields(titan.FaultTolerance)
    },
}
"""Key -> why it is refused."""


def corpus_type(alias: str, is_text: bool) -> Any:
    """Returns what a corpus alias holds: one comma-separated text, or a list where it is not ``is_text`` already."""
    if alias == "training.streaming":
        return bool
    if is_text:
        return str
    return str | list[float] if alias == "training.data_probs" else str | list[str]


def refuse(key: str, value: Any, origin: str) -> None:
    """Refuses a key that flame would ignore, unless its value asks for nothing.

    Args:
        key: A key of ``REFUSED``.
        value: Its value; text where it comes from the command line, None for a bare flag.
        origin: Where it stands, such as "in job.toml".

    Raises:
        ConfigError: The value asks for something.
    """
    refusal = REFUSED[key]
    text = str(True if value is None else value).lower()
    if text not in {str(harmless).lower() for harmless in refusal.harmless}:
        raise ConfigError(f"{key} = {text!r} {origin} is not supported: {refusal.remedy}.")
    if refusal.warn:
        logger.warning("%s %s: %s.", key, origin, refusal.remedy)


def sources_from_corpora(corpora: dict[str, Any]) -> dict[str, Any]:
    """Turns upstream's comma-separated lists into the keys of ``[[data.sources]]``.

    Args:
        corpora: Corpus alias -> value, as text or as a list.

    Returns:
        ``data.sources.N.<field>`` -> value.

    Raises:
        ConfigError: There is no ``training.dataset``, or a list does not have one entry per dataset.
    """
    if not corpora:
        return {}
    if "training.dataset" not in corpora:
        alias = next(iter(corpora))
        raise ConfigError(f"{alias} needs training.dataset; beside [[data.sources]] use {_source_key(0, alias)}.")
    count = len(_entries(corpora["training.dataset"]))
    if "training.data_probs" in corpora:
        logger.warning("training.data_probs are taken as shares of the tokens; upstream drew documents by them.")
    values: dict[str, Any] = {}
    for alias, given in corpora.items():
        for index, entry in enumerate(_per_dataset(alias, given, count)):
            if entry not in ("", []):
                values[_source_key(index, alias)] = entry
    return values


def _source_key(index: int, alias: str) -> str:
    return f"data.sources.{index}.{CORPUS_ALIASES[alias]}"


def _entries(value: Any) -> list[Any]:
    return [entry.strip() for entry in value.split(",")] if isinstance(value, str) else list(value)


def _per_dataset(alias: str, value: Any, count: int) -> list[Any]:
    """One value per dataset, in the type of the source field."""
    if alias == "training.streaming":
        return [value] * count
    entries: list[Any] = _entries(value)
    if alias == "training.data_files":
        entries = [entries] if count == 1 else [[entry] if entry else [] for entry in entries]
    if len(entries) != count:
        raise ConfigError(f"{alias} = {value!r} has {len(entries)} entries, but training.dataset has {count}.")
    if alias != "training.data_probs":
        return entries
    try:
        return [float(entry) for entry in entries]
    except ValueError as error:
        raise ConfigError(f"{alias} = {value!r} must be numbers separated by commas.") from error
