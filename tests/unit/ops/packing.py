"""Runs a reference for dense rows on every packed document by itself."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BORDERS = [0, 1, 18, 18, 83, 147, 277, 280]
"""Documents of 1, 17, 0, 65, 64, 130 and 3 tokens: in several batches of similar lengths, one of them empty."""


def apart(reference: Callable[..., Any], borders: list[int]) -> Callable[..., tuple[Tensor, ...]]:
    """``reference`` of inputs [1, T, ...], document by document; inputs of one dimension are parameters."""

    def run(**inputs: Any) -> tuple[Tensor, ...]:
        parts = []
        for start, end in zip(borders, borders[1:], strict=False):
            if end > start:
                cut = {name: x[:, start:end] if is_tokens(x) else x for name, x in inputs.items()}
                outputs = reference(**cut)
                parts.append(outputs if isinstance(outputs, tuple) else (outputs,))
        return tuple(torch.cat(pieces, 1) for pieces in zip(*parts, strict=True))

    return run


def is_tokens(x: Any) -> bool:
    """True for [1, T, ...]."""
    return isinstance(x, Tensor) and x.dim() > 1
