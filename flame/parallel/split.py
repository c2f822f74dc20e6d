"""Cuts a HuggingFace model into pipeline stages that keep their global parameter names.

A stage is the model itself with stand-ins where other stages' modules were. What enters the first decoder layer of a
stage is what the stage before it handed on, whatever the model's own forward does before its layers (scaling or
normalising embeddings again), and what leaves the last layer is handed on, whatever it does after them.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from transformers import PreTrainedModel

from flame.errors import ConfigError
from flame.models.ends import ends


class Placeholder(nn.Module):
    """Stands where a module of another stage was and gives back what it is given; adds nothing where it embeds.

    Attributes:
        width: length of the tuple that the replaced module returned; 0 for a bare tensor.
    """

    def __init__(self, replaced: nn.Module, width: int = 0) -> None:
        super().__init__()
        self.width = width
        self._adds = isinstance(replaced, nn.Embedding)
        # Forward passes ask layers for their kind (``attention_type``), not only for their result.
        for name, value in vars(replaced).items():
            if isinstance(value, (str, int, float, bool)) and not name.startswith("_") and name != "training":
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns its first argument."""
        value = kwargs.get("inputs_embeds", args[0] if args else next(iter(kwargs.values()), None))
        if self._adds or (isinstance(value, torch.Tensor) and not value.is_floating_point()):
            value = torch.zeros(())  # without dimensions, so that it changes no shape and no type
        return self.wrapped(value)

    def wrapped(self, value: Any) -> Any:
        """The value as the replaced module would have returned it."""
        return (value, *[None] * (self.width - 1)) if self.width else value


class Inlet(Placeholder):
    """The stand-in before a stage's first layer, and for its embedding: gives what the stage before handed on."""

    value: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns ``value``."""
        return self.wrapped(self.value)


class Outlet(Placeholder):
    """The stand-in after a stage's last layer: keeps what the layer gave."""

    value: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Keeps its first argument in ``value``."""
        self.value = args[0] if args else next(iter(kwargs.values()))
        return self.wrapped(self.value)


@dataclass(frozen=True)
class Anatomy:
    """Where the modules of a family belong: names of the model's parts around its decoder layers."""

    layers: str
    """Name of the list of decoder layers."""
    before: tuple[str, ...]
    """Modules with parameters that run before the layers."""
    after: tuple[str, ...]
    """Modules with parameters that run after them."""
    width: int
    """Length of the tuple a layer returns; 0 for a bare tensor."""
    common: tuple[str, ...] = ()
    """Parameters in no module of their own (the lower bounds of HGRN): every stage has them all."""


def share_weight(embedding: nn.Module | None, head: nn.Module | None) -> bool:
    """True if the embedding is also the output head."""
    return isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear) and head.weight is embedding.weight


def layer_stack(model: PreTrainedModel) -> nn.ModuleList:
    """The model's decoder layers: the one list of modules whose classes the family says not to split, or ``layers``.

    Raises:
        ConfigError: no such list.
    """
    layers = model.get_submodule(layer_stack_name(model))
    assert isinstance(layers, nn.ModuleList)
    return layers


def layer_stacks(model: PreTrainedModel) -> tuple[list[nn.ModuleList], list[nn.ModuleList]]:
    """The model's lists of layers: those whose layers run once per pass, and those whose layers run several times.

    A class that runs layers several times names their lists in ``_shared_blocks``; all its lists of unsplit modules
    count then. Of any other class it is ``layer_stack`` alone.

    Raises:
        ConfigError: as ``layer_stack``.
    """
    shared = getattr(model, "_shared_blocks", ())
    if not shared:
        return [layer_stack(model)], []
    unsplit = set(model._no_split_modules or [])
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and {type(layer).__name__ for layer in module} <= unsplit and len(module)
    }
    return [held for name, held in lists.items() if name not in shared], [lists[name] for name in shared]


def layer_stack_name(model: PreTrainedModel) -> str:
    """The name of ``layer_stack(model)``."""
    unsplit = set(model._no_split_modules or [])
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            kinds = {type(layer).__name__ for layer in module if not isinstance(layer, Placeholder)}
            named = name.rpartition(".")[2] in ("layers", "layer", "h", "blocks") and name.count(".") <= 2
            if kinds <= unsplit or named:
                return name
    raise ConfigError(
        f"{type(model).__name__} has no list of layers flame can find; name their class in _no_split_modules"
    )


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Finds out what runs before and after the decoder layers by running the model once.

    Args:
        model: a small instance with real weights, unsharded.

    Raises:
        ConfigError: a module runs both before and after the layers.
    """
    layers = layer_stack_name(model)
    calls: list[str] = []
    width = 0

    def note(name: str) -> Any:
        return lambda module, args, kwargs: calls.append(name)

    def measure(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal width
        width = len(output) if isinstance(output, tuple) else 0

    parts, common = _parts(model, layers)
    hooks = [model.get_submodule(name).register_forward_pre_hook(note(name), with_kwargs=True) for name in parts]
    stack = model.get_submodule(layers)
    assert isinstance(stack, nn.ModuleList)
    hooks.append(stack[0].register_forward_pre_hook(note(layers), with_kwargs=True))
    hooks.append(stack[0].register_forward_hook(measure))
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 8, dtype=torch.long))
    finally:
        for hook in hooks:
            hook.remove()
    turn = calls.index(layers) if layers in calls else 0
    before = {name for name in calls[:turn] if name in parts}
    after = {name for name in calls[turn:] if name in parts}
    if both := sorted(before & after):
        raise ConfigError(f"{type(model).__name__} uses {both[0]} both before and after its layers: it cannot be split")
    # What is not called by name (a head that is computed as a product with the embedding) stays with the first stage.
    return Anatomy(layers, tuple(name for name in parts if name not in after), tuple(sorted(after)), width, common)


def _parts(model: PreTrainedModel, layers: str) -> tuple[list[str], tuple[str, ...]]:
    """Names of the modules with parameters, and of the parameters, beside the path to the layers."""
    path = layers.split(".")
    parts, common = [], []
    for depth in range(len(path)):
        parent = ".".join(path[:depth])
        holder = model.get_submodule(parent)
        common += [f"{parent}.{name}".lstrip(".") for name, _ in holder.named_parameters(recurse=False)]
        for name, child in holder.named_children():
            if name != path[depth] and next(child.parameters(), None) is not None:
                parts.append(f"{parent}.{name}".lstrip("."))
    return parts, tuple(common)


def cut(model: PreTrainedModel, found: Anatomy, layers: range, is_first: bool, is_last: bool) -> PreTrainedModel:
    """A copy of the model that holds the layers of one stage, and its ends if the stage is the first or the last.

    A tied embedding stays on both ends, so that it keeps its one name.

    Args:
        model: the whole model, on the meta device.
        found: what runs where.
        layers: numbers of the stage's layers.
        is_first: whether the stage takes token ids.
        is_last: whether the stage computes the loss.
    """
    stage = copy.deepcopy(model)
    embedding, head = ends(stage)
    tied = share_weight(embedding, head)
    dropped = [] if is_first else [*found.before]
    dropped += [] if is_last else [*found.after]
    for name in dropped:
        module = stage.get_submodule(name)
        held = next((path for path, part in module.named_modules() if part is embedding), None)
        if held != "":
            _replace(stage, name, Placeholder(module))
        elif not (tied and is_last):
            _replace(stage, name, Inlet(module))
        if tied and is_last and held and "." not in held:  # BERT's, in a module with other embeddings
            setattr(stage.get_submodule(name), held, embedding)
    stack = stage.get_submodule(found.layers)
    assert isinstance(stack, nn.ModuleList)
    for number, layer in enumerate(stack):
        if number not in layers:
            kind = {layers.start - 1: Inlet, layers.stop: Outlet}.get(number, Placeholder)
            stack[number] = kind(layer, found.width)
    return stage


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
