"""Activation checkpointing, compilation and sharding, in this order, over HuggingFace's own module names."""

import logging
import shutil

import torch
import torch.nn as nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.activation_checkpoint import apply_ac
from transformers import PreTrainedModel

from flame import compat
from flame.config import JobConfig
from flame.errors import ConfigError

log = logging.getLogger(__name__)


def parallelize(model: PreTrainedModel, parallel_dims: ParallelDims, job_config: JobConfig) -> PreTrainedModel:
    """Applies the job's layout to a model on the meta device.

    Raises:
        ConfigError: the model has no stack of layers, or the job compiles without a compiler.
    """
    if job_config.activation_checkpoint.mode != "none":
        checkpoint_layers(model, job_config)
    if job_config.compile.enable:
        compile_layers(model, job_config.compile.backend)
    shard(model, data_mesh(parallel_dims), job_config)
    return model


def layer_stack(model: PreTrainedModel) -> nn.ModuleList:
    """The model's decoder layers: the one list of modules whose classes the family says not to split, or ``layers``.

    Raises:
        ConfigError: no such list.
    """
    unsplit = set(model._no_split_modules or [])
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            kinds = {type(layer).__name__ for layer in module}
            if kinds <= unsplit or (name.rpartition(".")[2] in ("layers", "h", "blocks") and name.count(".") <= 1):
                return module
    raise ConfigError(
        f"{type(model).__name__} has no list of layers flame can find; name their class in _no_split_modules"
    )


def checkpoint_layers(model: PreTrainedModel, job_config: JobConfig) -> None:
    """Recomputes activations in the backward pass, by torchtitan's modes; names in checkpoints do not change."""
    holder = nn.Module()
    holder.layers = layer_stack(model)
    apply_ac(
        holder,
        job_config.activation_checkpoint,
        model_compile_enabled=job_config.compile.enable,
        op_sac_save_list=_saved_ops(),
        base_folder=job_config.job.dump_folder,
    )


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
        collectives.reduce_scatter_tensor.default,
        collectives.all_to_all_single.default,
    }


def compile_layers(model: PreTrainedModel, backend: str) -> None:
    """Compiles each layer in place; equal layers share one compilation and names do not change."""
    if compat.DEVICE_TYPE == "cpu" and backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        raise ConfigError(
            "compile.enable needs a C++ compiler on a CPU and none is installed; install g++ or set it to false"
        )
    for layer in layer_stack(model):
        layer.compile(backend=backend)
    log.info("each layer is compiled with %s", backend)


def data_mesh(parallel_dims: ParallelDims) -> DeviceMesh:
    """The mesh to shard (and replicate) over. It has real process groups at size 1 too: torchtitan's has fake ones,
    and sharding at size 1 is what gives one device the same precision as many."""
    replicate, shard_degree = parallel_dims.dp_replicate, parallel_dims.dp_shard * parallel_dims.cp
    if shard_degree > 1:
        return parallel_dims.get_mesh(["dp_replicate", "fsdp"] if replicate > 1 else "fsdp")
    if replicate > 1:
        return init_device_mesh(compat.DEVICE_TYPE, (replicate, 1), mesh_dim_names=("dp_replicate", "fsdp"))
    return init_device_mesh(compat.DEVICE_TYPE, (1,), mesh_dim_names=("fsdp",))


def shard(model: PreTrainedModel, mesh: DeviceMesh, job_config: JobConfig) -> None:
    """Shards parameters layer by layer; gradients are summed, never averaged (the trainer divides once)."""
    training = job_config.training
    policy = MixedPrecisionPolicy(
        param_dtype=TORCH_DTYPE_MAP[training.mixed_precision_param],
        reduce_dtype=TORCH_DTYPE_MAP[training.mixed_precision_reduce],
    )
    options = {"mesh": mesh, "mp_policy": policy}
    if training.enable_cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy()
    wish = job_config.parallelism.fsdp_reshard_after_forward
    # One shard has nothing to free but a copy in another dtype, which the backward pass would make again.
    reshard = wish == "always" or (wish == "default" and mesh["fsdp"].size() > 1)
    for layer in layer_stack(model):
        fully_shard(layer, **options, reshard_after_forward=reshard)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    # A tied weight must be gathered once, by the group of the root; two groups would each hold half its gradient.
    if isinstance(embedding, nn.Module) and isinstance(head, nn.Module) and embedding.weight is not head.weight:
        fully_shard(embedding, **options, reshard_after_forward=reshard)
        # The backward pass begins with the head, so resharding it after the forward pass would only gather it twice.
        fully_shard(
            head, **options, reshard_after_forward=job_config.parallelism.fsdp_reshard_after_forward == "always"
        )
    fully_shard(model, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo has no reduction that scales on the way.
            module.set_force_sum_reduction_for_comms(compat.DEVICE_TYPE == "cpu")
