"""The two ends of a HuggingFace model."""

from typing import Any

import torch.nn as nn
from transformers import PreTrainedModel


def ends(model: PreTrainedModel) -> tuple[nn.Module | None, nn.Module | None]:
    """The model's embedding and its head; None for one that another stage has, or that there is none of: a model of
    recordings has no embedding."""
    return _found(model.get_input_embeddings), _found(model.get_output_embeddings)


def _found(end: Any) -> nn.Module | None:
    try:
        return end()
    except (AttributeError, NotImplementedError):
        return None
