"""Cuts packed documents into chunks of equal size, so that a recurrence becomes matrix products.

Inside a chunk every mixer is a masked product of [C, C] scores; between chunks a state is carried. The rows of a
layout are chunks ordered by their place in their document: first the first chunk of every document, then the second
of those that have one, and so on. So one step of the carried state is one batched product over all documents still
running, for a dense batch [B, T] (B documents of T tokens) as for packed ones (``cu_seqlens``).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flame.ops.values import has_values

CHUNK = 64
"""Tokens per chunk: products of 64 x 64 fill a core, and their cost is still small beside that of the projections."""


@dataclass(frozen=True)
class Chunks:
    """How ``B * T`` tokens lie in ``R`` rows of ``size`` tokens.

    ``steps[j]`` counts the documents that have a chunk ``j``; ``R`` is their sum. ``gather`` and ``scatter`` are None
    for a dense batch, which only needs padding.
    """

    batch: int
    length: int
    size: int
    documents: int
    steps: list[int]
    gather: Tensor | None = None
    """[R * C] which token stands where; padding points at token 0 and is masked."""
    padding: Tensor | None = None
    """[R, C] True where there is no token; None without any."""
    scatter: Tensor | None = None
    """[B * T] where each token stands among R * C."""
    order: Tensor | None = None
    """[N] the documents by descending number of chunks."""

    @property
    def rows(self) -> int:
        """Rows of all steps together."""
        return sum(self.steps)

    def split(self, x: Tensor) -> Tensor:
        """Cuts ``x`` [B, T, H, D] into rows [R, H, C, D]; positions without a token are zero."""
        if self.gather is None:
            pad = len(self.steps) * self.size - self.length
            if pad:
                x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, pad))
            x = x.unflatten(1, (len(self.steps), self.size))  # [B, n, C, H, D]
            return x.permute(1, 0, 3, 2, 4).flatten(0, 1)
        x = x.flatten(0, 1).index_select(0, self.gather).unflatten(0, (self.rows, self.size))  # [R, C, H, D]
        if self.padding is not None:
            x = x.masked_fill(self.padding[:, :, None, None], 0)
        return x.transpose(1, 2)

    def join(self, rows: Tensor) -> Tensor:
        """Puts rows [R, H, C, D] back to [B, T, H, D]; the inverse of ``split``."""
        if self.scatter is None:
            x = rows.unflatten(0, (len(self.steps), self.batch)).permute(1, 0, 3, 2, 4)  # [B, n, C, H, D]
            return x.flatten(1, 2)[:, : self.length]
        x = rows.transpose(1, 2).flatten(0, 1).index_select(0, self.scatter)
        return x.unflatten(0, (self.batch, self.length))

    def walk(self, state: Tensor, step: Callable[[Tensor, slice], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Carries a state through the chunks of every document.

        Args:
            state: [N, ...] each document's state before its first token.
            step: from the states [m, ...] of the running documents and the slice of their rows, their outputs [m, ...]
                and new states.

        Returns:
            The outputs of all rows [R, ...] and the final states [N, ...] in the documents' own order.
        """
        if self.order is not None:
            state = state.index_select(0, self.order)
        if not has_values(state):  # one step over all rows is as much work
            output, state = step(state[:1].expand(self.rows, *state.shape[1:]), slice(0, self.rows))
            return output, state[:1].expand(self.documents, *state.shape[1:])
        outputs, ended, start = [], [], 0
        for count in self.steps:
            if count < len(state):
                ended.append(state[count:])
                state = state[:count]
            output, state = step(state, slice(start, start + count))
            outputs.append(output)
            start += count
        final = torch.cat([state, *reversed(ended)]) if ended else state
        if self.order is not None:
            final = final.index_select(0, self.order.argsort())
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0], final

    def carry(self, decay: Tensor, update: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The states before each chunk [R, ...] and the final ones [N, ...], where a chunk maps S to decay * S +
        update.

        Args:
            decay: [R, ...] broadcast against the state.
            update: [R, ...] what each chunk adds.
            state: [N, ...] the states before the first tokens.
        """
        if not has_values(state):
            return update, state
        decays, updates = decay.split(self.steps), update.split(self.steps)
        index = iter(range(len(self.steps)))

        def step(state: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            at = next(index)
            return state, torch.addcmul(updates[at], decays[at], state)

        return self.walk(state, step)


def chunks_of(x: Tensor, cu_seqlens: Tensor | None = None, size: int = CHUNK) -> Chunks:
    """The layout of ``x`` [B, T, ...]: every row one document, or packed documents [1, T, ...] with their borders.

    Args:
        x: the tokens, of which only the shape is read.
        cu_seqlens: [N + 1] where the documents begin and the last one ends.
        size: tokens per chunk; a shorter sequence makes the chunk as short.

    Raises:
        ValueError: the borders do not cover the tokens, or there is more than one row beside ``cu_seqlens``.
    """
    batch, length = x.shape[:2]
    if cu_seqlens is None:
        size = max(1, min(size, length))
        return Chunks(batch, length, size, batch, [batch] * -(-length // size))
    borders = cu_seqlens.tolist()
    if batch != 1 or borders[0] != 0 or borders[-1] != length:
        raise ValueError(
            f"cu_seqlens from {borders[0]} to {borders[-1]} does not cover one row of {length} tokens"
            f" (got shape {tuple(x.shape)}); flatten the batch to [1, B * T] and give every border"
        )
    return _packed(tuple(borders), size, x.device)


def _packed(borders: tuple[int, ...], size: int, device: torch.device) -> Chunks:
    lengths = torch.tensor(borders).diff()
    size = max(1, min(size, int(lengths.max())))
    counts = (lengths + size - 1) // size
    order = counts.argsort(descending=True, stable=True)
    steps = [int((counts > step).sum()) for step in range(int(counts.max()))]
    starts = torch.tensor(borders[:-1])[order]
    ends = torch.tensor(borders[1:])[order]
    first = torch.cat([starts[:count] + step * size for step, count in enumerate(steps)])  # [R]
    last = torch.cat([ends[:count] for count in steps])
    tokens = first[:, None] + torch.arange(size)  # [R, C]
    padding = tokens >= last[:, None]
    scatter = torch.empty(borders[-1], dtype=torch.long)
    scatter[tokens[~padding]] = torch.arange(padding.numel()).view_as(padding)[~padding]
    return Chunks(
        batch=1,
        length=borders[-1],
        size=size,
        documents=len(borders) - 1,
        steps=steps,
        gather=tokens.masked_fill(padding, 0).flatten().to(device),
        padding=padding.to(device) if bool(padding.any()) else None,
        scatter=scatter.to(device),
        order=order.to(device),
    )
