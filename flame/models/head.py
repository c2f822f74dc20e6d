"""Computes the loss inside the output head, so that logits of all positions never exist at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from transformers import PreTrainedModel

from flame.losses import linear_cross_entropy_sum


def output_head(model: nn.Module) -> nn.Linear | None:
    """The model's output projection if it is a plain linear layer."""
    assert isinstance(model, PreTrainedModel)
    head = model.get_output_embeddings()
    return head if isinstance(head, nn.Linear) else None


def head_is_last(model: PreTrainedModel) -> bool:
    """True if nothing happens to the logits after the head, so that the loss may be taken there.

    The head is made to return a known tensor; the model must hand out that very tensor. A soft cap, a scale or a slice
    after the head (nanochat, Granite, Gemma) shows as another one.

    Args:
        model: a scaled-down instance with real weights, not sharded.
    """
    head = output_head(model)
    if head is None:
        return False
    probe = torch.zeros(1, 8, head.out_features)
    seen: list[torch.Size] = []

    def answer(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape)
        return probe

    with torch.no_grad(), _replaced_forward(head, answer):
        logits = model(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits
    return logits is probe and seen == [torch.Size((1, 8, head.in_features))]


def loss_in_head(model: nn.Module, inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """Runs the model with its head replaced by head and cross entropy in one; returns the SUM, a float32 scalar.

    The head's module call stays, and with it FSDP's gathering of the head's weight.
    """
    head = output_head(model)
    assert head is not None

    def answer(hidden: torch.Tensor) -> torch.Tensor:
        return _linear_cross_entropy(hidden, head.weight, head.bias, labels)

    with _replaced_forward(head, answer):
        return model(**inputs).logits


def _linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    if hidden.device.type == "cpu":
        return linear_cross_entropy_sum(hidden, weight, bias, labels)
    # Late: fla takes a second to import and its kernels exist on accelerators only.
    from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss

    rows = hidden.flatten(0, -2)
    return fused_linear_cross_entropy_loss(rows, labels.flatten(), weight, bias, reduction="sum")  # type: ignore[arg-type]


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
