"""Walks over blocks of queries, so that the scores of one block against its keys are all that is held at a time.

The backward pass computes them again where they would fill much memory.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from flame.ops.decay import SPAN, largest

P = ParamSpec("P")
R = TypeVar("R")

BLOCK = 128
"""Queries per block."""
HELD = 1 << 24
"""Scores kept for the backward pass (64 MiB in float32); more are computed again."""


@dataclass(frozen=True)
class Span:
    """One block of queries at the places ``[first, last)`` of a document, and its keys at ``[start, last)``."""

    first: int
    last: int
    start: int
    window: int | None

    def hidden(self, device: torch.device, diagonal: int = 0) -> Tensor:
        """[C, S] True where a key is not among the ``window`` latest up to ``query + diagonal``."""
        queries = torch.arange(self.first, self.last, device=device)[:, None]
        keys = torch.arange(self.start, self.last, device=device)
        hidden = keys > queries + diagonal
        return hidden if self.window is None else hidden | (keys <= queries - self.window)


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` left out of compiled graphs, where its loop over blocks would be unrolled for minutes."""
    return cast("Callable[P, R]", torch.compiler.disable(function))


def exact(x: Tensor) -> AbstractContextManager:
    """Keeps autocast from narrowing the products of scores."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


@uncompiled
def by_rows(
    body: Callable[..., tuple[Tensor, ...]],
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    window: int | None = None,
    block: int = BLOCK,
) -> tuple[Tensor, ...]:
    """The outputs of ``body`` for all queries, each block of them beside the keys up to its last.

    Args:
        body: from ``span, *queries, *keys`` of one block to outputs [..., C, D].
        queries: [..., T, D] or fewer tokens than keys: the last ones of the document.
        keys: [..., S, D], of which [..., start:last, D] is passed.
        window: how many keys a query sees at most, its own included; None for all.
        block: queries per block.
    """
    count, length = queries[0].shape[-2], keys[0].shape[-2]
    spans = _spans(count, length, window, block)
    if len(spans) == 1:
        span = spans[0]
        with exact(queries[0]):
            return body(span, *queries, *[x[..., span.start : span.last, :] for x in keys])
    # Pieces rather than slices: the gradient of a slice is as large as the whole.
    sizes = [span.last - span.first for span in spans]
    query_pieces = [x.split(sizes, -2) for x in queries]
    borders = [0, *range(block, length, block), length]
    key_pieces = [x.split([end - begin for begin, end in zip(borders, borders[1:], strict=False)], -2) for x in keys]
    again = many(queries[0], length)
    outputs = []
    for index, span in enumerate(spans):
        pieces = [piece[span.start // block : -(-span.last // block)] for piece in key_pieces]
        own = [piece[index] for piece in query_pieces]
        outputs.append(_run(body, span, own, pieces, again))
    return tuple(torch.cat(parts, -2) for parts in zip(*outputs, strict=True))


def many(q: Tensor, length: int) -> bool:
    """True where the causal scores of ``q`` [..., T, D] over ``length`` keys are too many to keep for a gradient."""
    return torch.is_grad_enabled() and q[..., 0].numel() * length // 2 > HELD


def _spans(count: int, length: int, window: int | None, block: int) -> list[Span]:
    first, spans = length - count, []
    while first < length or not spans:
        last = min((first // block + 1) * block, length)
        start = 0 if window is None else max(0, first - window + 1)
        # Whole pieces of keys, unless there is only one block, whose keys are sliced.
        spans.append(Span(first, last, start if count == last - first else start // block * block, window))
        first = last
    return spans


def _run(
    body: Callable[..., tuple[Tensor, ...]],
    span: Span,
    own: Sequence[Tensor],
    pieces: Sequence[Sequence[Tensor]],
    again: bool,
) -> tuple[Tensor, ...]:
    def joined(own: Sequence[Tensor], pieces: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
        with exact(own[0]):
            return body(span, *own, *[torch.cat(list(piece), -2) for piece in pieces])

    return recomputed(joined, own, pieces) if again else joined(own, pieces)


def recomputed(body: Callable[..., tuple[Tensor, ...]], *inputs: Tensor | Sequence) -> tuple[Tensor, ...]:
    """``body(*inputs)`` of which the backward pass keeps nothing but the inputs."""
    return checkpoint(body, *inputs, use_reentrant=False, preserve_rng_state=False)


def fold(x: Tensor, heads: int) -> Tensor:
    """Queries [B, T, HQ, D] beside the head of keys they share: [B, H, G, T, D]."""
    return x.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4)


def unfold(x: Tensor) -> Tensor:
    """The inverse of ``fold``."""
    return x.permute(0, 3, 1, 2, 4).flatten(2, 3)


def against(q: Tensor, k: Tensor) -> Tensor:
    """Products [B, H, G, C, S] of folded queries [B, H, G, C, D] and keys [B, H, S, D], without a copy of the keys."""
    return (q.flatten(2, 3) @ k.mT).unflatten(2, q.shape[2:4])


def weigh(weights: Tensor, v: Tensor) -> Tensor:
    """Sums [B, H, G, C, V] of values [B, H, S, V] under weights [B, H, G, C, S]."""
    return (weights.flatten(2, 3) @ v).unflatten(2, weights.shape[2:4])


def summed(g: Tensor, heads: int) -> tuple[Tensor, bool]:
    """Running sums of log gates [B, T, HQ] in float64, folded to [B, H, G, T, 1], and whether ``faded`` may be narrow.

    Sums relative to a block's own fit in float32 unless a block forgets very fast.
    """
    steps = g.detach().float().abs()
    blocks = pad(steps, (0, 0, 0, -steps.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK)).sum(2)
    return fold(g.double().cumsum(1).unsqueeze(-1), heads), largest(blocks) <= SPAN


def faded(own: Tensor, theirs: Tensor, narrow: bool, dtype: torch.dtype) -> Tensor:
    """Differences [..., C, S] between sums of gates [..., C, 1] of one block of queries and [..., S, 1] of its keys."""
    if narrow:
        reference = own[..., :1, :].detach()
        own, theirs = (own - reference).to(dtype), (theirs - reference).to(dtype)
    return (own - theirs.mT).to(dtype)


def scaling(scale: float | None, k: Tensor) -> float:
    """What scores of keys [..., K] are multiplied by: ``scale``, or ``K ** -0.5``."""
    return float(k.shape[-1]) ** -0.5 if scale is None else scale


def check_heads(queries: int, keys: int) -> None:
    """Raises ValueError unless every head of keys serves the same number of heads of queries."""
    if keys == 0 or queries % keys != 0:
        raise ValueError(f"{queries} heads of queries cannot share {keys} heads of keys; give a divisor of {queries}")
