"""Tells a model where packed documents begin, and proves that it listens."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from flame.models.trial import stir

_LENGTH = 70


def document_inputs(inputs: dict[str, Any], documents: str) -> dict[str, Any]:
    """The keyword arguments of the forward pass for a packed batch.

    Args:
        inputs: ``input_ids`` [B, T] and, for packed documents, ``position_ids`` [B, T] that restart at each document.
        documents: ``position_ids`` (transformers: attention is masked where they restart), ``one_row`` (the same where
            flash attention, which takes no mask, looks for restarts in a single row only: the batch becomes one row
            [1, B*T]), or ``cu_seqlens`` (fla: one row too, with the documents' borders).
    """
    positions = inputs.get("position_ids")
    if positions is None or documents == "position_ids":
        return inputs
    if documents == "one_row":
        return {
            name: value.reshape(1, -1) if isinstance(value, torch.Tensor) and value.shape == positions.shape else value
            for name, value in inputs.items()
        }
    starts = (positions.flatten() == 0).nonzero().flatten()
    ends = torch.tensor([positions.numel()], device=positions.device)
    return {
        "input_ids": inputs["input_ids"].reshape(1, -1),
        "cu_seqlens": torch.cat([starts, ends]).to(torch.int32),
    }


@torch.no_grad()
def documents_are_isolated(model: PreTrainedModel, documents: str) -> bool:
    """True if a packed document's logits are those it has alone, whatever stands before it.

    Args:
        model: a scaled-down instance with real weights, in eval mode.
        documents: as in ``document_inputs``.
    """
    model = stir(copy.deepcopy(model))  # a head that starts at zero would hide everything
    generator = torch.Generator().manual_seed(0)
    # Longer than 64, up to which fla's layers run other kernels.
    first, other, second = torch.randint(0, model.config.vocab_size, (3, 1, _LENGTH), generator=generator)
    positions = torch.arange(_LENGTH).repeat(2).unsqueeze(0)

    def last(front: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": torch.cat([front, second], dim=1), "position_ids": positions}
        return model(**document_inputs(inputs, documents)).logits[:, -_LENGTH:]

    alone = model(input_ids=second).logits
    return all(torch.allclose(last(front), alone, rtol=1e-3, atol=1e-5) for front in (first, other))
