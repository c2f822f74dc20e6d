"""Tensor and expert parallelism by HuggingFace's plans: which projection is split by columns, which by rows, and so on.

The plan is the family's own (``base_model_tp_plan``, ``base_model_ep_plan`` of its config); the styles it names are
transformers'. https://huggingface.co/docs/transformers/perf_infer_gpu_multi
"""

import re
from typing import Any

import torch.distributed as dist
import torch.nn as nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel
from transformers.distributed.expert_parallel import apply_expert_parallelism
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from flame.models.ends import ends
from flame.models.families.units import made_of_units
from flame.parallel.split import Placeholder, share_weight
from flame.parallel.sums import SummedGradient
from flame.parallel.units import shard_units

GRADIENT_SUM = "replicated_with_grad_allreduce"


def apply_tensor_parallel(model: PreTrainedModel, mesh: DeviceMesh, expert_parallel: bool = False) -> None:
    """Splits the modules that the plan names over ``mesh``; names in checkpoints do not change.

    Args:
        model: on the meta device, whole or one pipeline stage.
        mesh: one-dimensional.
        expert_parallel: whether experts are left to ``apply_expert_parallel``.
    """
    shard_units(model, mesh)
    plan = expanded(model, tensor_plan(model, expert_parallel))
    embedding, head = ends(model)
    tied = share_weight(embedding, head)
    modules = dict(model.named_modules())
    summed = {name for name, style in plan.items() if style == GRADIENT_SUM}
    summed |= {name for name, module in modules.items() if _is_split_activation(name, module, plan)}
    left = summed | {f"{name}.weight" for name, module in modules.items() if tied and module is head}
    apply_tensor_parallelism(model, mesh, {name: style for name, style in plan.items() if name not in left})
    for name in summed & modules.keys():
        sum_gradients(modules[name], mesh.get_group())
    if tied:
        assert isinstance(head, nn.Linear) and isinstance(embedding, nn.Embedding)
        head.weight = embedding.weight


def apply_expert_parallel(model: PreTrainedModel, experts: DeviceMesh, tensor: DeviceMesh) -> list[nn.Module]:
    """Gives every rank of ``experts`` whole experts of its own; returns the modules that hold them.

    Args:
        model: on the meta device, whole or one pipeline stage.
        experts: one-dimensional, over ranks that read different batches.
        tensor: the ranks that share a batch, size 1 without tensor parallelism.
    """
    plan = expanded(model, model.ep_plan)
    apply_expert_parallelism(model, experts, tensor, plan)
    modules = dict(model.named_modules())
    return [modules[name] for name, style in plan.items() if style == "ep_dispatch_experts"]


def tensor_plan(model: PreTrainedModel, expert_parallel: bool = False) -> dict[str, str]:
    """The family's plan, by name with ``*`` for layer numbers; without the experts if these are split whole.

    For families made of units (fla), which are split otherwise, it is that of both ends.
    """
    if made_of_units(model):
        return _plan_of_ends(model)
    if not expert_parallel:
        return dict(model.tp_plan)
    rules = "|".join(map(re.escape, model.ep_plan))
    return {name: style for name, style in model.tp_plan.items() if not re.fullmatch(rf"(?:{rules})(?:\..+)?", name)}


def _plan_of_ends(model: PreTrainedModel) -> dict[str, str]:
    embedding, head = ends(model)
    styles = {id(embedding): "embedding_rowwise", id(head): "colwise_gather_output"}
    return {name: styles[id(module)] for name, module in model.named_modules() if id(module) in styles}


def expanded(model: PreTrainedModel, plan: dict[str, str]) -> dict[str, str]:
    """The plan by full names, for what this model (or stage of it) holds."""
    modules = dict(model.named_modules())
    found = model._expand_parallel_plan(plan)
    return {name: style for name, style in found.items() if not isinstance(modules.get(name), Placeholder)}


def _is_split_activation(name: str, module: nn.Module, plan: dict[str, str]) -> bool:
    """Whether a module is an activation with parameters of its own (xIELU) between columns and rows."""
    parent, _, leaf = name.rpartition(".")
    between = any(style == "rowwise" and other.rpartition(".")[0] == parent for other, style in plan.items())
    return between and leaf.startswith("act") and bool(module._parameters) and name not in plan


def sum_gradients(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Adds up the gradients of a module's own parameters over ``group``, where each rank sees only some of its uses (a
    norm that every head shares).

    transformers sums ``param.grad`` in a hook, which counts earlier micro-batches twice once gradients accumulate.
    """
    forward = module.forward

    def with_summed_gradients(*args: Any, **kwargs: Any) -> Any:
        parameters = dict(module._parameters)
        for name, parameter in parameters.items():
            if parameter is not None:
                module._parameters[name] = SummedGradient.apply(parameter, group)  # type: ignore[assignment]
        try:
            return forward(*args, **kwargs)
        finally:
            module._parameters.update(parameters)

    module.forward = with_summed_gradients  # type: ignore[method-assign]
