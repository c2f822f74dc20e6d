"""What each parameter of a model is to an optimizer: a matrix of the hidden layers, an embedding, the head, or none."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn as nn
from transformers import PreTrainedModel

from flame.config.optimization import ROLES
from flame.models.ends import ends

# Projections that are several in one, by the name of their module or parameter. Families with other names say so in a
# class attribute ``_fused_projections`` of their model. Where the parts are interleaved they stay one matrix.
_FUSED = {
    "gate_up_proj": "halves",
    "Wi": "halves",
    "qkv_proj": "qkv",
    "Wqkv": "qkv",
    "c_attn": "qkv",
}
_FUSED_OF_FAMILY = {
    **{family: {"shared_mlp.input_linear": "halves"} for family in ("granitemoeshared", "granitemoehybrid")},
    "jetmoe": {"mlp.input_linear": "halves", "kv_proj": "halves"},
}
_INTERLEAVED = ("codegen", "gpt_oss", "gpt_bigcode")


@dataclass(frozen=True)
class Parameter:
    """A parameter and what it is."""

    name: str
    value: nn.Parameter
    role: str
    """One of ``ROLES``."""
    transposed: bool = False
    """Whether its rows are inputs, not outputs."""
    parts: tuple[int, ...] = ()
    """Of a fused projection: the sizes of its parts along the outputs."""


def classify(model: PreTrainedModel) -> list[Parameter]:
    """All trained parameters of a model or of a pipeline stage, each once, in the order of ``named_parameters``.

    Matrices are the weights of projections in the layers (of every ``nn.ModuleList``) and those of inner modules beside
    them, and stacks of experts [E, I, H]; not those of low-rank updates called ``lora``. Embeddings are tables that are
    looked up, the head what maps to the output; an embedding tied to it goes by the head's rules, on every stage.
    """
    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    heads = _heads(model)
    found: dict[int, Parameter] = {}
    for path, module in model.named_modules():
        for leaf, value in module.named_parameters(recurse=False):
            if not value.requires_grad or id(value) in found:
                continue
            name = f"{path}.{leaf}".lstrip(".")
            inside = any(path.startswith(f"{holder}.") for holder in lists)
            if id(value) in heads:
                found[id(value)] = Parameter(name, value, "head")
            elif id(value) in tables:
                found[id(value)] = Parameter(name, value, "embeddings")
            elif not inside and "." not in path and isinstance(module, nn.Linear) and leaf == "weight":
                found[id(value)] = Parameter(name, value, "head")  # of a classifier, of CTC
            elif is_matrix(module, name, leaf, value, inside):
                transposed = _transposed(module, leaf, value, model.config.get_text_config().hidden_size)
                parts = fused_parts(model, path, leaf, value, transposed)
                found[id(value)] = Parameter(name, value, "matrices", transposed, parts)
            else:
                found[id(value)] = Parameter(name, value, "scalars")
    return list(found.values())


def by_role(parameters: list[Parameter]) -> Iterator[tuple[str, list[Parameter]]]:
    """The roles that occur, matrices first, with their parameters."""
    for role in ROLES:
        if held := [parameter for parameter in parameters if parameter.role == role]:
            yield role, held


def is_matrix(module: nn.Module, name: str, leaf: str, value: nn.Parameter, inside: bool) -> bool:
    """Whether a parameter maps vectors of one space to another: [out, in], or a stack [E, out, in] of experts."""
    if "lora" in name or value.ndim not in (2, 3) or min(value.shape[-2:]) < 2:
        return False
    if "norm" in type(module).__name__.lower():  # a weight for every head
        return False
    if value.ndim == 2:
        return leaf == "weight" and (inside or isinstance(module, nn.Linear))
    return inside and (leaf.endswith("_proj") or type(module).__name__.endswith("Experts"))


def fused_parts(model: PreTrainedModel, path: str, leaf: str, value: nn.Parameter, transposed: bool) -> tuple[int, ...]:
    """Sizes of the projections that a parameter holds one after another along its outputs; () if it is one."""
    config: Any = model.config.get_text_config()
    families = _FUSED_OF_FAMILY.get(config.model_type, {})
    known: dict[str, str] = {**_FUSED, **families, **getattr(type(model), "_fused_projections", {})}
    kind = known.get(leaf) or next((known[name] for name in known if f".{path}".endswith(f".{name}")), None)
    if kind is None or config.model_type in _INTERLEAVED:
        return ()
    outputs = value.shape[-1 if transposed else -2]
    if kind == "halves":
        return (outputs // 2, outputs // 2) if outputs % 2 == 0 else ()
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    sizes = (heads * width, key_heads * width, key_heads * width)
    return sizes if sum(sizes) == outputs else ()


def _transposed(module: nn.Module, leaf: str, value: nn.Parameter, hidden: int) -> bool:
    if type(module).__name__ == "Conv1D" or getattr(module, "is_transposed", False):
        return True
    if value.ndim < 3:
        return False
    # Stacks of experts come either way round (Llama 4's are [E, in, out]): one side is the hidden states'.
    outputs, inputs = value.shape[-2:] if "down" not in leaf else value.shape[:-3:-1]
    return inputs != hidden and outputs == hidden


def _heads(model: PreTrainedModel) -> set[int]:
    """The output head's weight, also where a stage holds only the embedding that is tied to it."""
    embedding, head = (getattr(end, "weight", None) for end in ends(model))
    config: Any = model.config.get_text_config()
    tied = head is None and getattr(config, "tie_word_embeddings", False)
    return {id(weight) for weight in (head, embedding if tied else None) if weight is not None}
