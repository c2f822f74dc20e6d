"""Initial states of recurrences, and the documents they belong to."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flame.ops.precision import precision


def state_like(state: Tensor | None, documents: int, k: Tensor, v: Tensor) -> Tensor:
    """The initial states [N, H, K, V]: those given, else zeros; float64 if the tokens are, float32 otherwise.

    Raises:
        ValueError: the states given are not those of ``documents`` documents.
    """
    dtype = precision(v)
    shape = (documents, v.shape[2], k.shape[-1], v.shape[-1])
    if state is None:
        return torch.zeros(shape, dtype=dtype, device=v.device)
    if state.shape != shape:
        raise ValueError(f"an initial state of shape {tuple(state.shape)} does not fit; this call needs {shape}")
    return state.to(dtype)


def documents_of(x: Tensor, cu_seqlens: Tensor | None) -> list[tuple[int, range]]:
    """The row and the tokens of each document of ``x`` [B, T, ...]."""
    if cu_seqlens is None:
        return [(row, range(x.shape[1])) for row in range(x.shape[0])]
    borders = cu_seqlens.tolist()
    return [(0, range(start, stop)) for start, stop in zip(borders, borders[1:], strict=False)]


def value_first(state: Tensor | None, yes: bool) -> Tensor | None:
    """A state [N, H, K, V] as [N, H, V, K] or back, where ``yes``."""
    return state.mT if state is not None and yes else state


def layout_asked(state_v_first: bool, options: Mapping[str, Any]) -> bool:
    """``state_v_first``, or its former name ``transpose_state_layout`` among ``options``."""
    return bool(options.get("transpose_state_layout", state_v_first))


def check_options(options: Mapping[str, Any], *known: str) -> None:
    """Refuses what an entry point with ``**kwargs`` would otherwise ignore; ``chunk_size`` changes no number.

    Raises:
        ValueError: names the options.
    """
    if unknown := sorted(options.keys() - {"chunk_size", *known}):
        raise ValueError(f"{', '.join(unknown)}: no such option without Triton; leave it out")


def forward_only(reverse: bool) -> None:
    """Refuses the direction that no causal language model uses.

    Raises:
        ValueError: ``reverse`` is set.
    """
    if reverse:
        raise ValueError("reverse=True is not available without Triton; flip the sequence before and after the call")
