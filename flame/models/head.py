"""Computes the loss inside the output head, so that logits of all positions never exist at once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel

from flame.losses import Vocabulary, capped_logits, linear_cross_entropy_sum


def output_head(model: Any) -> nn.Linear | None:
    """The model's output projection if it is a plain linear layer.

    Args:
        model: anything with ``get_output_embeddings``: a HuggingFace model, or what stands for a part of one.
    """
    head = model.get_output_embeddings()
    return head if isinstance(head, nn.Linear) else None


def head_is_last(model: PreTrainedModel) -> bool:
    """True if nothing but a soft cap (``final_logit_softcapping``) happens to the logits after the head, so that the
    loss may be taken there.

    The head is made to return a known tensor; without its cap, the model must hand out that very tensor. A scale or a
    slice after the head (Granite) shows as another one.

    Args:
        model: a scaled-down instance with real weights, not sharded.
    """
    head = output_head(model)
    if head is None:
        return False
    probe = torch.linspace(-40, 40, 8 * head.out_features).view(1, 8, head.out_features)
    seen: list[torch.Size] = []

    def answer(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape)
        return probe

    def logits() -> torch.Tensor:
        return model(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits

    cap = soft_cap(model)
    with torch.no_grad(), _replaced_forward(head, answer):
        capped = logits() if cap else probe
        with _without_cap(model):
            last = logits() is probe
    return last and torch.allclose(capped, capped_logits(probe, cap)) and set(seen) == {(1, 8, head.in_features)}


def soft_cap(model: Any) -> float:
    """The bound that the model's logits approach, 0 if they have none."""
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None) or 0.0


def loss_in_head(model: Any, inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """Runs the model with its head replaced by head and cross entropy in one.

    The head's module call stays, and with it FSDP's gathering of the head's weight. A weight sharded by tensor
    parallelism stays sharded: every rank of its mesh computes the loss of the same positions from its part.

    Args:
        model: has a plain linear head, by ``get_output_embeddings``, whose output is its ``logits``.
        inputs: the model's keyword arguments.
        labels: [...], one per position that reaches the head, already shifted; -100 where not scored.

    Returns:
        The SUM, a float32 scalar; equal on every rank of the head's mesh.
    """
    with scoring_head(model, [labels]):
        return model(**inputs).logits


@contextmanager
def scoring_head(model: Any, labels: Iterable[torch.Tensor]) -> Iterator[None]:
    """While it lasts, the model's head returns summed cross entropies instead of logits.

    Args:
        model: as in ``loss_in_head``.
        labels: as in ``loss_in_head``, for each call of the head in turn.
    """
    head, turns = output_head(model), iter(labels)
    assert head is not None

    def answer(hidden: torch.Tensor) -> torch.Tensor:
        return _linear_cross_entropy(hidden, head.weight, head.bias, next(turns), cap)

    cap = soft_cap(model)
    with _replaced_forward(head, answer), _without_cap(model):
        yield


def _linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, cap: float
) -> torch.Tensor:
    if isinstance(weight, DTensor):
        if _has_own_rows(weight) and (bias is None or _has_own_rows(bias)):
            own_bias = bias.to_local() if isinstance(bias, DTensor) else None
            vocabulary = _vocabulary_of(weight)
            own = weight.to_local()
            return linear_cross_entropy_sum(hidden, own, own_bias, labels, vocabulary=vocabulary, soft_cap=cap)
        # Replicated, which costs nothing here, or sharded in a way that few families have: over its inputs, or with a
        # bias that is not.
        weight = weight.full_tensor()
        bias = bias.full_tensor() if isinstance(bias, DTensor) else bias
    if hidden.device.type == "cpu" or cap:  # fla's knows no cap
        return linear_cross_entropy_sum(hidden, weight, bias, labels, soft_cap=cap)
    # Late: fla takes a second to import and its kernels exist on accelerators only.
    from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss

    rows = hidden.flatten(0, -2)
    return fused_linear_cross_entropy_loss(rows, labels.flatten(), weight, bias, reduction="sum")  # type: ignore[arg-type]


def _has_own_rows(parameter: torch.Tensor) -> bool:
    """True if every rank of a mesh holds some rows of ``parameter``."""
    return isinstance(parameter, DTensor) and any(placement.is_shard(0) for placement in parameter.placements)


def _vocabulary_of(weight: DTensor) -> Vocabulary:
    """The rows of the vocabulary that this rank holds of ``weight`` [V, H]."""
    mesh, placements = weight.device_mesh, weight.placements
    assert mesh.ndim == 1, f"the output head is sharded over more than one dimension: {placements}"
    _, offset = compute_local_shape_and_global_offset(weight.shape, mesh, placements)
    return Vocabulary(start=offset[0], size=weight.shape[0], group=mesh.get_group())


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    # Tensor parallelism wraps forward in an attribute of the instance.
    own = vars(module).get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def _without_cap(model: Any) -> Iterator[None]:
    config, cap = model.config.get_text_config(), soft_cap(model)
    if cap:
        config.final_logit_softcapping = None
    try:
        yield
    finally:
        if cap:
            config.final_logit_softcapping = cap
