"""What a layout demands of a model family, checked without devices; numbers are left to the preflight."""

import copy
from collections.abc import Iterable

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from flame.config import JobConfig
from flame.config.parallelism import Parallelism
from flame.errors import ConfigError
from flame.models.build import build_model, plain_model
from flame.models.families.units import made_of_units
from flame.models.trial import stir, trial_model
from flame.parallel.division import divide_layers, stage_layers
from flame.parallel.split import Anatomy, anatomy, cut, layer_stack
from flame.parallel.stage import Stage
from flame.parallel.tensor import tensor_plan
from flame.parallel.units import check_units
from flame.tasks.base import Task

_HEADS = ("num_attention_heads", "num_key_value_heads", "num_heads", "num_kv_heads")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def check_layout(
    model_class: type[PreTrainedModel], model_config: PreTrainedConfig, config: JobConfig, task: Task
) -> None:
    """Refuses a layout that the family has no plan for, or whose degrees do not divide its sizes.

    Args:
        model_class: the class that will be trained.
        model_config: its config.
        config: the job, resolved.
        task: the job's task, after its own ``check``.

    Raises:
        ConfigError: says what is missing and what to do.
    """
    layout = config.parallelism
    degrees = (layout.tensor_parallel_degree, layout.expert_parallel_degree, layout.pipeline_parallel_degree)
    if max(*degrees, layout.context_parallel_degree) == 1:
        return
    if layout.preflight != "off" and trial_model(model_class, model_config) is None:
        raise ConfigError(
            f"family '{model_config.model_type}' cannot be scaled down here, so nothing but data parallelism can be "
            "proven for it; use that alone, or parallelism.preflight = 'off' to train anyway"
        )
    with torch.device("meta"):
        model = build_model(model_class, model_config)
    if made_of_units(model):
        _check_units(model, layout)
    elif layout.tensor_parallel_degree > 1:
        _check_tensor(model, layout.tensor_parallel_degree)
    if layout.expert_parallel_degree > 1:
        _check_experts(model, layout.expert_parallel_degree)
    if layout.pipeline_parallel_degree > 1:
        stage_layers(config, len(layer_stack(model)), find_anatomy(model_class, model_config))
        if layout.preflight != "off":
            check_split(model_class, model_config, task)


def find_anatomy(model_class: type[PreTrainedModel], model_config: PreTrainedConfig) -> Anatomy:
    """What runs where in a family, found out on a scaled-down model.

    Raises:
        ConfigError: the family cannot be scaled down, or its modules cannot be placed.
    """
    small = trial_model(model_class, model_config)
    if small is None:
        raise ConfigError(
            f"family '{model_config.model_type}' cannot be scaled down to find out how to cut it into pipeline stages; "
            "set parallelism.pipeline_parallel_degree to 1"
        )
    return anatomy(small)


def check_split(model_class: type[PreTrainedModel], model_config: PreTrainedConfig, task: Task) -> None:
    """Cuts a scaled-down model into stages, runs them one after the other, and compares with the model in one piece.

    This is the part of the preflight that needs no ranks, so a family that cannot be cut is refused before any start.

    Raises:
        ConfigError: loss or a gradient differs, or a stage does not run.
    """
    tried = trial_model(model_class, model_config, layers=3) or trial_model(model_class, model_config)
    if tried is None:  # find_anatomy has said so already
        return
    # A fresh one: some families change their layers the first time they run.
    model = stir(plain_model(model_class, tried.config, seed=0).eval())
    generator = torch.Generator().manual_seed(0)
    inputs, labels = task.sample(tried.config, 2, 96, generator)
    inputs, labels = task.prepare({**inputs, **task.draw(generator)}, labels, generator)
    whole = copy.deepcopy(model)
    loss = task.loss_sum(whole, inputs, labels)
    loss.backward()
    refusal = f"parallelism.pipeline_parallel_degree: family '{model_config.model_type}' cannot be cut into stages: "
    remedy = "its layers share more than the hidden states; set the degree to 1"
    try:
        found = anatomy(tried)
        division = divide_layers(len(layer_stack(model)), min(3, len(layer_stack(model))), 0, 0)
        carried, parts = inputs["input_ids"], []
        for index, layers in enumerate(division):
            part = cut(model, found, layers, index == 0, index == len(division) - 1)
            parts.append(part)
            carried = Stage(part, task, None)(carried, labels=labels, **inputs)
            width = model.config.get_text_config().hidden_size
            if carried.dim() and carried.shape[-1] != width:
                raise ValueError(f"layers hand on {carried.shape[-1]} numbers per position instead of {width}")
        carried.backward()
    except ConfigError as error:
        raise ConfigError(f"parallelism.pipeline_parallel_degree: {error}; set the degree to 1") from error
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{refusal}{remedy} ({type(error).__name__}: {reason})") from error
    if not torch.allclose(carried, loss, rtol=1e-4):
        raise ConfigError(f"{refusal}the loss is {carried.item():.6g} instead of {loss.item():.6g}; {remedy}")
    gradients: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, parameter in part.named_parameters():
            if parameter.grad is not None:
                gradients[name] = gradients.get(name, torch.zeros(())) + parameter.grad
    for name, parameter in whole.named_parameters():
        right = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        error = (gradients.get(name, torch.zeros_like(right)) - right).norm()
        if error > 1e-3 * right.norm() + 1e-5 * loss.item():
            raise ConfigError(f"{refusal}the gradient of {name} is {error / right.norm():.0e} off; {remedy}")


def _check_units(model: PreTrainedModel, layout: Parallelism) -> None:
    tensor, context = layout.tensor_parallel_degree, layout.context_parallel_degree
    if tensor > 1:
        check_units(model, tensor, "parallelism.tensor_parallel_degree")
    if context > 1:
        # Ranks of both kinds share a unit's heads.
        key = "parallelism.context_parallel_degree" + (" x tensor_parallel_degree" if tensor > 1 else "")
        check_units(model, tensor * context, key, mixers_only=True)


def _check_tensor(model: PreTrainedModel, degree: int) -> None:
    key = f"parallelism.tensor_parallel_degree = {degree}"
    family, plan = model.config.model_type, tensor_plan(model)
    if not any(".*." in name for name in plan):  # beyond the ends, nothing in a layer
        raise ConfigError(
            f"{key}: family '{family}' has no tensor-parallel plan; set the degree to 1, or give its config class a "
            "base_model_tp_plan"
        )
    if any(style == "colwise" for style in plan.values()):
        for name, heads in _counts(model.config, _HEADS):
            if heads % degree:
                raise ConfigError(f"{key} does not divide {name} = {heads} of the model; choose one that does")


def _check_experts(model: PreTrainedModel, degree: int) -> None:
    key = f"parallelism.expert_parallel_degree = {degree}"
    if not model.ep_plan:
        raise ConfigError(f"{key}: family '{model.config.model_type}' has no expert-parallel plan; set the degree to 1")
    for name, experts in _counts(model.config, _EXPERTS):
        if experts % degree:
            raise ConfigError(f"{key} does not divide {name} = {experts} of the model; choose one that does")


def _counts(config: PreTrainedConfig, names: Iterable[str]) -> list[tuple[str, int]]:
    """The sizes of a config that go by one of these names."""
    text = config.get_text_config()
    found = [(name, getattr(text, name, None)) for name in names]
    return [(name, value) for name, value in found if isinstance(value, int) and value > 0]
