"""Puts a job together (family, config, tokenizer, task) and describes it to torchtitan as a TrainSpec."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchtitan.protocols.train_spec as titan_spec
from torchtitan.distributed import ParallelDims
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_flash_attn_2_available

from flame import compat
from flame.config import JobConfig, to_toml
from flame.data.job import open_all, train_loader, validation_loader
from flame.errors import ConfigError, closest
from flame.metrics import Metrics
from flame.models.build import ModelArgs, build_model, model_class
from flame.models.config import fit_tokenizer, load_config
from flame.models.experts import check_experts
from flame.models.float8 import check_float8
from flame.optim import build_lr_schedulers, build_optimizers, derive_steps
from flame.parallel.checks import check_layout, find_anatomy
from flame.parallel.layout import Layout
from flame.parallel.passes import Passes, build_passes
from flame.parallel.pipeline import Pipeline
from flame.parallel.split import Anatomy
from flame.plugin import ModelPlugin, load_task, modeling_files, tasks
from flame.tasks.base import Task
from flame.tokenizer.load import load_tokenizer
from flame.validate import Validator

log = logging.getLogger(__name__)

_NOT_OF_THE_MODEL = {"architectures", "auto_map", "dtype", "transformers_version"}


@dataclass
class Job:
    """Everything a run needs before the first process group exists."""

    config: JobConfig
    plugin: ModelPlugin
    model_config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    tokenizer: PreTrainedTokenizerFast | None
    """None where the task reads no text."""
    task: Task
    grown_vocabulary: bool
    passes: Passes | None = None
    """How batches run through the model; known once the model is laid out."""


def load_job(config: JobConfig) -> Job:
    """Loads family, model config, tokenizer and task of a resolved config.

    Raises:
        FlameError: whatever cannot be found, or does not go together.
    """
    model_config, plugin = load_config(config.model.config, config.model.plugin_path)
    if plugin.needs_triton and compat.DEVICE_TYPE == "cpu":
        raise ConfigError(
            f"family '{plugin.model_type}' needs a GPU, and this machine has none: {plugin.needs_triton}; "
            "train it on one, or take a family that `flame families` lists for the CPU"
        )
    tokenizer = load_tokenizer(config.model.tokenizer_path) if config.task.needs_tokenizer else None
    grown = tokenizer is not None and fit_tokenizer(model_config, tokenizer)
    model_config._attn_implementation = attention(config, plugin.objective)
    task_class = load_task(config.task.name, config.model.plugin_path)
    cls = model_class(plugin, model_config, task_class.head)  # type: ignore[attr-defined]
    task = task_class(config.task, tokenizer=tokenizer, config=config)
    cls.init_seed = config.debug.seed  # type: ignore[attr-defined]
    task.features = plugin.features(model_config) if plugin.features is not None else None
    task.extend(cls, model_config)
    work = task.mean_work(model_config) if config.training.flops else 1.0  # thousands of draws for some tasks
    derive_steps(config, cls, model_config, plugin, work)
    return Job(config, plugin, model_config, cls, tokenizer, task, grown)


def check_job(job: Job) -> None:
    """Tries the task on a scaled-down model; a family it cannot train right, or not in this layout, is refused here."""
    _check_family(job)
    _check_layouts(job)
    job.task.check(job.model_class, job.model_config, job.plugin.documents)
    check_layout(job.model_class, job.model_config, job.config, job.task)
    check_float8(job.model_class, job.model_config, job.config)
    check_experts(job.model_class, job.model_config, job.config.moe)


def _check_layouts(job: Job) -> None:
    """Refuses layouts of records that the task's encoder knows nothing of."""
    config, known = job.config, job.task.layouts
    for section, sources in (("data", config.data.sources), ("validation", config.validation.sources)):
        for index, source in enumerate(sources):
            if source.layout and source.layout not in known:
                raise ConfigError(
                    f"{section}.sources.{index}.layout = '{source.layout}': task '{config.task.name}' takes "
                    f"{', '.join(known) or 'none'}.{closest(source.layout, known)}"
                )


def _check_family(job: Job) -> None:
    """Refuses what the family says it is not made for."""
    plugin, config, layout = job.plugin, job.config, job.config.parallelism
    if plugin.objective not in job.task.objectives:
        suited = [name for name in tasks() if plugin.objective in load_task(name).objectives]  # type: ignore[attr-defined]
        raise ConfigError(
            f"task.name = '{config.task.name}' does not train family '{plugin.model_type}', whose objective is "
            f"{plugin.objective}; use {' or '.join(repr(name) for name in suited)}"
        )
    asked = {
        "parallelism.tensor_parallel_degree": ("tensor", layout.tensor_parallel_degree > 1),
        "parallelism.pipeline_parallel_degree": ("pipeline", layout.pipeline_parallel_degree > 1),
        "parallelism.context_parallel_degree": ("context", layout.context_parallel_degree > 1),
        "parallelism.expert_parallel_degree": ("expert", layout.expert_parallel_degree > 1),
        "training.varlen": ("varlen", config.training.varlen),
        "compile.enable": ("compile", config.compile.enable),
    }
    for key, (what, is_asked) in asked.items():
        if is_asked and what in plugin.refuses:
            remedy = "to false" if what in ("varlen", "compile") else "to 1"
            raise ConfigError(
                f"{key}: family '{plugin.model_type}' refuses it ({plugin.refuses[what]}); set it {remedy}"
            )


def check_sources(job: Job) -> None:
    """Opens every data source once, so that what is missing or unreadable shows before any rank starts.

    Raises:
        DataError: a source cannot be read.
    """
    open_all(job.config, job.task.encoder())


def attention(config: JobConfig, objective: str) -> str | None:
    """The attention implementation of a transformers family: the job's, else what device and packing ask for; None
    leaves the choice to transformers (SDPA where the family has it)."""
    if config.model.attn_implementation:
        return config.model.attn_implementation
    if config.training.varlen and compat.DEVICE_TYPE == "cuda":
        # A dense mask over packed documents would take T x T memory.
        flash = is_flash_attn_2_available() and objective != "masked_diffusion"
        return "flash_attention_2" if flash else "flex_attention"
    return None


def write_assets(job: Job) -> None:
    """Writes the run folder's ``config.toml`` and ``model/``: all of a HuggingFace folder but the weights."""
    run = Path(job.config.job.dump_folder)
    folder = run / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (run / "config.toml").write_text(to_toml(job.config))
    files = modeling_files(job.model_class)
    config = job.model_config
    if files:
        hf_class = job.model_class.__mro__[2]
        config.auto_map = {  # type: ignore[attr-defined]
            "AutoConfig": f"{_leaf(type(config).__module__)}.{type(config).__name__}",
            job.plugin.auto_classes[job.task.head].__name__: f"{_leaf(hf_class.__module__)}.{hf_class.__name__}",
        }
    config.architectures = [job.model_class.__name__]
    _warn_of_changes(folder / "config.json", config)
    config.save_pretrained(folder)
    if job.task.head == "causal_lm":
        GenerationConfig.from_model_config(config).save_pretrained(folder)
    if job.tokenizer is not None:
        job.tokenizer.save_pretrained(folder)
    if job.task.features is not None:
        _write_features(job.task.features, folder)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _warn_of_changes(earlier: Path, config: PreTrainedConfig) -> None:
    """Says what a run that goes on makes different; sizes that fit no checkpoint have been refused before."""
    if not earlier.is_file():
        return
    old, new = json.loads(earlier.read_text()), json.loads(config.to_json_string())
    changed = sorted(name for name in old.keys() & new.keys() - _NOT_OF_THE_MODEL if old[name] != new[name])
    if changed:
        told = ", ".join(f"{name} was {old[name]!r} and is {new[name]!r}" for name in changed)
        log.warning("the model is another than this run was trained with so far: %s", told)


def _write_features(features: Any, folder: Path) -> None:
    """Writes ``preprocessor_config.json``; a class that is not transformers' own comes along as a file."""
    if not type(features).__module__.startswith("transformers."):
        name = f"{_leaf(type(features).__module__)}.{type(features).__name__}"
        features.auto_map = {"AutoFeatureExtractor": name}
    features.save_pretrained(folder)


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def register(job: Job) -> None:
    """Makes ``job`` the TrainSpec that torchtitan's Trainer finds under ``model.name``."""
    titan_spec._extra_train_specs.pop(job.config.model.name, None)
    titan_spec.register_train_spec(job.config.model.name, make_train_spec(job))


def make_train_spec(job: Job) -> titan_spec.TrainSpec:
    """The TrainSpec of a job: functions over HuggingFace names in every place torchtitan offers."""
    forward_flops = 0
    if job.plugin.forward_flops is not None:
        forward_flops = job.plugin.forward_flops(job.model_config, job.config.training.seq_len)
    args = ModelArgs(model_type=job.plugin.model_type, forward_flops=forward_flops)
    return titan_spec.TrainSpec(
        model_cls=lambda model_args: build_model(job.model_class, job.model_config),  # type: ignore[arg-type]
        model_args={job.config.model.flavor: args},
        parallelize_fn=lambda model, layout, config: lay_out(job, model, layout).parts[0],  # type: ignore[arg-type]
        pipelining_fn=lambda model, layout, *_: _stages(lay_out(job, model, layout)),  # type: ignore[arg-type]
        build_optimizers_fn=lambda parts, keys, layout, *_: build_optimizers(parts, job.config, layout),  # type: ignore[arg-type]
        build_lr_schedulers_fn=build_lr_schedulers,
        build_dataloader_fn=lambda dp_rank, dp_world_size, **_: train_loader(
            job.config, job.task.encoder(), dp_rank, dp_world_size
        ),
        build_tokenizer_fn=lambda job_config: job.tokenizer,  # type: ignore[arg-type, return-value]
        build_loss_fn=lambda job_config, **kwargs: job.task.loss,
        build_validator_fn=lambda **kwargs: make_validator(job, **kwargs),
        build_metrics_processor_fn=Metrics,
    )


def lay_out(job: Job, model: PreTrainedModel, layout: Layout) -> Passes:
    """Lays the job's model out over its devices."""
    device = torch.device(compat.DEVICE_TYPE, compat.DEVICE_MODULE.current_device())
    job.passes = build_passes(model, layout, job.config, device, job.task, anatomy_of(job))
    return job.passes


def anatomy_of(job: Job) -> Anatomy | None:
    """What runs where in the job's model, if it is cut into stages."""
    if job.config.parallelism.pipeline_parallel_degree == 1:
        return None
    return find_anatomy(job.model_class, job.model_config)


def _stages(passes: Passes) -> tuple[Pipeline, list[PreTrainedModel], bool, bool]:
    assert passes.pipeline is not None
    return passes.pipeline, passes.parts, passes.pipeline.has_first, passes.pipeline.has_last


def make_validator(
    job: Job, *, dp_rank: int, dp_world_size: int, parallel_dims: ParallelDims, metrics_processor: Metrics, **_: Any
) -> Validator:
    """The validator over ``validation.sources``."""
    loader = validation_loader(job.config, job.task.encoder(), dp_rank, dp_world_size)
    assert job.passes is not None
    return Validator(job.config, loader, job.task, parallel_dims, metrics_processor, job.passes)
