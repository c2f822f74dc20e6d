"""Tensor parallelism, recomputation, compilation and sharding, in this order, over HuggingFace's own names."""

import logging
import shutil

import torch
import torch.nn as nn
from torchtitan.distributed.activation_checkpoint import apply_ac
from transformers import PreTrainedModel

from flame import compat
from flame.config import JobConfig
from flame.errors import ConfigError
from flame.parallel.layout import Layout
from flame.parallel.sharding import shard
from flame.parallel.split import Placeholder, layer_stacks
from flame.parallel.tensor import apply_expert_parallel, apply_tensor_parallel

log = logging.getLogger(__name__)


def parallelize(model: PreTrainedModel, parallel_dims: Layout, job_config: JobConfig) -> PreTrainedModel:
    """Applies the job's layout to a model, or to one pipeline stage of it, on the meta device.

    Raises:
        ConfigError: the model has no stack of layers, or the job compiles without a compiler.
    """
    stacks, repeated = layer_stacks(model)
    experts = []
    if parallel_dims.tp_enabled:
        apply_tensor_parallel(model, parallel_dims.get_mesh("tp"), expert_parallel=parallel_dims.ep_enabled)
    if parallel_dims.ep_enabled:
        experts = apply_expert_parallel(model, parallel_dims.get_mesh("ep"), parallel_dims.tensor_mesh)
    whole = _recomputes_iterations(model, job_config)
    for layers in [*stacks, *repeated]:
        if job_config.activation_checkpoint.mode != "none" and not (whole and layers in repeated):
            checkpoint_layers(layers, job_config)
        if job_config.compile.enable:
            compile_layers(layers, job_config.compile.backend)
    # Layers that run several times in a pass are gathered once, with the root.
    shard(model, [layer for layers in stacks for layer in layers], experts, parallel_dims, job_config)
    return model


def _recomputes_iterations(model: PreTrainedModel, job_config: JobConfig) -> bool:
    """Asks a model that runs layers several times to recompute each iteration as a whole, where layers are to be
    recomputed whole; then one input is kept per iteration and not one per layer. False if it cannot."""
    wanted = job_config.activation_checkpoint.mode == "full" and hasattr(model, "recompute_iterations")
    if wanted:
        model.recompute_iterations = True  # type: ignore[assignment]
    return wanted


def checkpoint_layers(layers: nn.ModuleList, job_config: JobConfig) -> None:
    """Recomputes activations in the backward pass, by torchtitan's modes; names in checkpoints do not change."""
    holder = nn.Module()
    holder.layers = nn.ModuleDict(
        {name: layer for name, layer in layers.named_children() if not isinstance(layer, Placeholder)}
    )
    apply_ac(
        holder,
        job_config.activation_checkpoint,
        model_compile_enabled=job_config.compile.enable,
        op_sac_save_list=_saved_ops(),
        base_folder=job_config.job.dump_folder,
    )
    for name, layer in holder.layers.items():
        layers[int(name)] = layer


def _saved_ops() -> set[torch._ops.OpOverload]:
    """What ``selective_ac_option = "op"`` keeps: results that are costly to compute again."""
    aten, collectives = torch.ops.aten, torch.ops._c10d_functional
    return {
        aten.mm.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten.max.default,
        collectives.all_gather_into_tensor.default,
        collectives.reduce_scatter_tensor.default,
        collectives.all_to_all_single.default,
    }


def compile_layers(layers: nn.ModuleList, backend: str) -> None:
    """Compiles each layer in place; equal layers share one compilation and names do not change."""
    if compat.DEVICE_TYPE == "cpu" and backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        raise ConfigError(
            "compile.enable needs a C++ compiler on a CPU and none is installed; install g++ or set it to false"
        )
    for layer in layers:
        if not isinstance(layer, Placeholder):
            layer.compile(backend=backend)
    log.info("each layer is compiled with %s", backend)
