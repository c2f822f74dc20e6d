"""How long a text a model can hold."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from flame.errors import ConfigError

_TOKENS = 3


def check_positions(limit: int, prompt: int, new: int) -> None:
    """Refuses what a table of learned positions has no rows for; other models go on beyond what they were trained on.

    Args:
        limit: positions of the table; 0: there is none.
        prompt: tokens there are.
        new: tokens to be made.

    Raises:
        ConfigError: they do not fit together.
    """
    if limit and prompt + new > limit:
        room = f"at most {limit - prompt}" if prompt < limit else "none"
        raise ConfigError(
            f"--max_new_tokens {new}: the model has {limit} positions and the prompt takes {prompt}, leaving {room}"
        )


@torch.no_grad()
def learned_positions(model: PreTrainedModel) -> int:
    """The positions of a learned table; 0 if the model has none.

    The model reads one token several times: tables of tokens are asked for one row, those of positions for successive
    ones. Names and sizes do not tell them apart.
    """
    tokens = model.get_input_embeddings()
    if all(module is tokens for module in model.modules() if isinstance(module, nn.Embedding)):
        return 0
    token = int(model.config.get_text_config().pad_token_id == 0)  # padding may count as no position
    with _Lookups() as lookups:
        model(input_ids=torch.full((1, _TOKENS), token, device=model.device))
    return min(lookups.limits, default=0)


class _Lookups(TorchFunctionMode):
    """Notes the rows of tables that are looked up by position; some families leave the first ones free."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.embedding:
            rows, table = args[:2]
            first = int(rows.flatten()[0])
            if rows.flatten().tolist() == list(range(first, first + _TOKENS)):
                self.limits.append(table.shape[0] - first)
        return func(*args, **(kwargs or {}))
