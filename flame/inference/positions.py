"""How long a text a model can hold."""

import torch.nn as nn
from transformers import PreTrainedModel

from flame.errors import ConfigError


def check_positions(model: PreTrainedModel, prompt: int, new: int) -> None:
    """Refuses what a table of learned positions has no rows for; other models go on beyond what they were trained on.

    Args:
        model: any.
        prompt: tokens there are.
        new: tokens to be made.

    Raises:
        ConfigError: they do not fit together.
    """
    limit = learned_positions(model)
    if limit and prompt + new > limit:
        room = f"at most {limit - prompt}" if prompt < limit else "none"
        raise ConfigError(
            f"--max_new_tokens {new}: the model has {limit} positions and the prompt takes {prompt}, leaving {room}"
        )


def learned_positions(model: PreTrainedModel) -> int:
    """The positions of a learned table; 0 if the model has none."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    others = [table for table in tables if table is not model.get_input_embeddings()]
    # Some families keep a few rows in front for padding.
    return limit if limit and any(limit <= table.num_embeddings <= limit + 2 for table in others) else 0
