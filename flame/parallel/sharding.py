"""Data parallelism by FSDP2: parameters in shards, gradients summed."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch.nn as nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torchtitan.config import TORCH_DTYPE_MAP
from transformers import PreTrainedModel

from flame import compat
from flame.config import JobConfig
from flame.models.ends import ends
from flame.parallel.layout import Layout
from flame.parallel.split import Placeholder, share_weight


def shard(
    model: PreTrainedModel,
    layers: Iterable[nn.Module],
    experts: Iterable[nn.Module],
    layout: Layout,
    job_config: JobConfig,
) -> None:
    """Shards parameters layer by layer; gradients are summed, never averaged (the trainer divides once).

    Args:
        model: the whole model or one pipeline stage.
        layers: its decoder layers.
        experts: modules whose parameters are split over expert-parallel ranks, sharded over fewer ranks than the rest.
        layout: the grid of devices.
        job_config: the job.
    """
    options = _options(layout, job_config)
    wish = job_config.parallelism.fsdp_reshard_after_forward
    # One shard has nothing to free but a copy in another dtype, which the backward pass would make again. A pipeline
    # would gather each layer once per micro-batch.
    spare = layout.get_mesh("fsdp").size() > 1 and not layout.pp_enabled
    reshard = wish == "always" or (wish == "default" and spare)
    for module in experts:
        fully_shard(module, **{**options, "mesh": layout.expert_data_mesh}, reshard_after_forward=reshard)
    layers = [layer for layer in layers if not isinstance(layer, Placeholder)]
    held = Counter(parameter for layer in layers for parameter in set(layer.parameters()))
    for layer in layers:
        # Weights that layers share (Zamba's attention) must be gathered once, by the group of the root.
        if all(held[parameter] == 1 for parameter in layer.parameters()):
            fully_shard(layer, **options, reshard_after_forward=reshard)
    embedding, head = ends(model)
    # A tied weight must be gathered once, by the group of the root; two groups would each hold half its gradient.
    if not share_weight(embedding, head):
        # The backward pass begins with the head, so resharding it after the forward pass would only gather it twice.
        for module, reshard_module in ((embedding, reshard), (head, wish == "always")):
            if isinstance(module, nn.Module) and next(module.parameters(), None) is not None:
                fully_shard(module, **options, reshard_after_forward=reshard_module)
    fully_shard(model, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule) and layout.world_size > layout.tp * layout.pp:
            # One rank alone divides by nothing unless it is told to divide by 1, which costs a copy of its gradients.
            module.set_gradient_divide_factor(1.0)
            # gloo has no reduction that scales on the way.
            module.set_force_sum_reduction_for_comms(compat.DEVICE_TYPE == "cpu")


def _options(layout: Layout, job_config: JobConfig) -> dict[str, Any]:
    training = job_config.training
    policy = MixedPrecisionPolicy(
        param_dtype=TORCH_DTYPE_MAP[training.mixed_precision_param],
        reduce_dtype=TORCH_DTYPE_MAP[training.mixed_precision_reduce],
    )
    options: dict[str, Any] = {"mesh": layout.data_mesh, "mp_policy": policy}
    if training.enable_cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy()
    return options
