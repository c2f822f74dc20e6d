"""Completing a job for a number of processes, and refusing what cannot be trained, before any process starts."""

import importlib.util
import re
from glob import glob, has_magic
from pathlib import Path

from flame import compat
from flame.config.bounds import check_bounds
from flame.config.corpora import SOURCE_FORMATS, Source
from flame.config.files import locate, looks_like_path
from flame.config.layout import check_microbatches, check_parallelism, data_parallel_degree
from flame.config.mixing import check_mixing
from flame.config.optimization import resolve_optimizer
from flame.config.sections import JobConfig
from flame.errors import ConfigError, closest
from flame.hardware import cpu_bfloat16

_STEPS = 10_000
"""Length of a run where nothing says it."""

_LOCAL_SOURCE = re.compile(r"^[./~]|\.(parquet|jsonl?|txt)(\.gz|\.zst)?$")
_SHARD_SIZE = re.compile(r"[1-9]\d*(\.\d+)?\s*[KMGT]i?B")


def resolve(config: JobConfig, world_size: int) -> None:
    """Fills in what a job leaves open and checks that it can be trained.

    Sets ``training.mixed_precision_param``, ``training.context_len``, ``training.local_batch_size``,
    ``training.global_batch_size`` and ``validation.local_batch_size``.
    ``training.gradient_accumulation_steps`` goes into the global batch size and becomes 0, so that a resolved job
    keeps its batches at another world size. Resolving twice changes nothing. Names on the hub are not looked up.

    Args:
        config: The job; changed in place.
        world_size: Number of processes, one per device.

    Raises:
        ConfigError: The job cannot be trained; the message names the keys, their values and the remedy.
    """
    check_bounds(config)
    check_parallelism(config)
    _check_model(config)
    _check_sources(config)
    reads_text = config.task.formats == SOURCE_FORMATS
    check_mixing(config.data, config.validation.sources, config.training.steps, reads_text)
    resolve_optimizer(config.optimizer)
    _check_memory(config)
    _check_checkpoint(config)
    _resolve_length(config)
    _resolve_precision(config)
    _resolve_lengths(config)
    _resolve_batches(config, data_parallel_degree(config, world_size))
    check_microbatches(config)


def _check_model(config: JobConfig) -> None:
    model = config.model
    if model.name != "flame":
        raise ConfigError(f"model.name = '{model.name}' must be 'flame'; the model is chosen by model.config.")
    if not model.config:
        raise ConfigError("model.config is not set: name a JSON file, a shipped config or a hub id.")
    in_model = Path(model.config, "tokenizer_config.json").expanduser()
    if not model.tokenizer_path and config.task.needs_tokenizer and in_model.is_file():
        model.tokenizer_path = model.config
    if model.tokenizer_path and not config.task.needs_tokenizer:
        raise ConfigError(f"model.tokenizer_path has no effect: task '{config.task.name}' reads no text; remove it.")
    if not model.tokenizer_path and config.task.needs_tokenizer:
        raise ConfigError(
            "model.tokenizer_path is not set: name a HuggingFace folder, a hub id or builtin:python-stdlib-8k."
        )
    if looks_like_path(model.config) and not Path(model.config).expanduser().is_dir():
        locate(model.config)
    if model.tokenizer_path:
        _require_existing("model.tokenizer_path", model.tokenizer_path)
    if model.plugin_path and not Path(model.plugin_path).expanduser().is_dir():
        raise ConfigError(f"model.plugin_path = '{model.plugin_path}' is not a folder.")
    for converter in model.converters:
        if converter.startswith("quantize.") and not importlib.util.find_spec("torchao"):
            raise ConfigError(f"model.converters: '{converter}' needs torchao; install it with: pip install torchao")


def _check_sources(config: JobConfig) -> None:
    if not config.data.sources:
        raise ConfigError("data.sources is empty: list at least one corpus as a [[data.sources]] table with a path.")
    if config.validation.enable and not config.validation.sources:
        raise ConfigError("validation.enable is true, but validation.sources is empty: list a held-out corpus there.")
    for section, sources in (("data", config.data.sources), ("validation", config.validation.sources)):
        for index, source in enumerate(sources):
            _check_source(f"{section}.sources.{index}", source, config.task.formats)


def _check_source(name: str, source: Source, formats: tuple[str, ...]) -> None:
    if not source.path:
        raise ConfigError(f"{name}.path is empty: name a file, a folder, a hub id or builtin:python-stdlib.")
    if source.format not in formats:
        valid, hint = ", ".join(formats[1:]), closest(source.format, formats)
        raise ConfigError(f"{name}.format = '{source.format}' must be one of {valid}, or empty.{hint}")
    if "://" in source.path or not _LOCAL_SOURCE.search(source.path):
        return
    path = str(Path(source.path).expanduser())
    found = glob(path, recursive=True) if has_magic(path) else Path(path).exists()
    if not found:
        raise ConfigError(f"{name}.path = '{source.path}' does not exist.")


def _resolve_length(config: JobConfig) -> None:
    training = config.training
    given = [key for key in ("tokens_per_param", "tokens", "flops") if getattr(training, key)]
    if len(given) > 1:
        values = ", ".join(f"training.{key} = {getattr(training, key):g}" for key in given)
        raise ConfigError(f"{values} each say how long the run is; keep one of them.")
    if training.count_params != "all" and given != ["tokens_per_param"]:
        raise ConfigError(
            f"training.count_params = '{training.count_params}' has no effect without training.tokens_per_param."
        )
    if not given:
        training.steps = training.steps or _STEPS


def _check_memory(config: JobConfig) -> None:
    if config.training.enable_cpu_offload and compat.DEVICE_TYPE == "cpu":
        raise ConfigError("training.enable_cpu_offload = true needs an accelerator to offload from; set it to false.")
    recompute = config.activation_checkpoint
    option = recompute.selective_ac_option
    if recompute.mode == "selective" and option != "op" and (not option.isdecimal() or int(option) < 1):
        raise ConfigError(f"activation_checkpoint.selective_ac_option = '{option}' must be 'op' or a number from 1.")
    if config.profiling.enable_memory_snapshot and compat.DEVICE_TYPE == "cpu":
        raise ConfigError("profiling.enable_memory_snapshot needs an accelerator; set it to false.")
    if recompute.mode == "memory_budget" and not config.compile.enable:
        raise ConfigError("activation_checkpoint.mode = 'memory_budget' needs compile.enable = true.")


def _check_checkpoint(config: JobConfig) -> None:
    checkpoint, folder = config.checkpoint, config.job.dump_folder
    if not folder:
        raise ConfigError("job.dump_folder is empty: name the folder of the run.")
    if Path(folder).is_file():
        raise ConfigError(f"job.dump_folder = '{folder}' is a file; name a folder.")
    if not checkpoint.folder:
        raise ConfigError("checkpoint.folder is empty: name a folder below job.dump_folder, such as 'checkpoint'.")
    if checkpoint.initial_load_in_hf and not checkpoint.initial_load_path:
        raise ConfigError("checkpoint.initial_load_in_hf needs checkpoint.initial_load_path, a HuggingFace folder.")
    if checkpoint.initial_load_in_hf and not checkpoint.initial_load_model_only:
        raise ConfigError("checkpoint.initial_load_in_hf needs initial_load_model_only = true: there are only weights.")
    if checkpoint.initial_load_path:
        _require_existing("checkpoint.initial_load_path", checkpoint.initial_load_path)
    if checkpoint.load_step >= 0 and not checkpoint.enable:
        raise ConfigError(f"checkpoint.load_step = {checkpoint.load_step} needs checkpoint.enable = true.")
    if checkpoint.async_mode == "async_with_pinned_mem" and compat.DEVICE_TYPE == "cpu":
        raise ConfigError("checkpoint.async_mode = 'async_with_pinned_mem' needs an accelerator; use 'async'.")
    if not _SHARD_SIZE.fullmatch(size := config.export.max_shard_size):
        raise ConfigError(f"export.max_shard_size = '{size}' must be a size such as 5GB or 500MB.")


def _require_existing(key: str, path: str) -> None:
    if looks_like_path(path) and not Path(path).expanduser().exists():
        raise ConfigError(f"{key} = '{path}' does not exist.")


def _resolve_precision(config: JobConfig) -> None:
    if config.training.mixed_precision_param == "auto":
        fast = compat.DEVICE_TYPE != "cpu" or cpu_bfloat16()
        config.training.mixed_precision_param = "bfloat16" if fast else "float32"


def _resolve_lengths(config: JobConfig) -> None:
    training = config.training
    training.context_len = training.context_len or training.seq_len
    if training.context_len > training.seq_len:
        raise ConfigError(
            f"training.context_len = {training.context_len} is longer than training.seq_len = {training.seq_len}; "
            "lower it, or remove it to use seq_len."
        )
    if training.context_len < training.seq_len and not training.varlen:
        raise ConfigError(
            f"training.context_len = {training.context_len} below training.seq_len = {training.seq_len} has no effect "
            "without training.varlen = true; turn that on, or remove context_len."
        )


def _resolve_batches(config: JobConfig, degree: int) -> None:
    training = config.training
    if not training.local_batch_size:
        training.local_batch_size = _rows_per_process(config, degree)
    at_once = training.local_batch_size * degree
    accumulated = at_once * training.gradient_accumulation_steps
    if training.global_batch_size < 0:
        training.global_batch_size = accumulated or at_once
    rows = f"training.local_batch_size = {training.local_batch_size} on {degree} data-parallel processes"
    if training.global_batch_size % at_once:
        raise ConfigError(
            f"training.global_batch_size = {training.global_batch_size} is not a multiple of {at_once} rows, which is "
            f"{rows}; change one of them."
        )
    if accumulated and accumulated != training.global_batch_size:
        raise ConfigError(
            f"training.gradient_accumulation_steps = {training.gradient_accumulation_steps} gives {accumulated} rows "
            f"({rows}), but training.global_batch_size = {training.global_batch_size}; remove one of them."
        )
    training.gradient_accumulation_steps = 0
    config.validation.local_batch_size = config.validation.local_batch_size or training.local_batch_size


def _rows_per_process(config: JobConfig, degree: int) -> int:
    training = config.training
    passes = degree * (training.gradient_accumulation_steps or 1)
    if training.global_batch_size < 0 or training.global_batch_size % passes:
        raise ConfigError(
            f"training.local_batch_size = 0 shares out training.global_batch_size = {training.global_batch_size}; set "
            f"that to a multiple of {passes}, the forward passes of a step on {degree} data-parallel processes."
        )
    return training.global_batch_size // passes
