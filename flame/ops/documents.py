"""Cuts packed documents into a few dense batches, for mixers that compare every token with every earlier one.

Their cost grows with the square of a document's length, so documents of similar length share a batch: padding then
wastes little, and no mask over all packed tokens is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from flame.ops.rows import uncompiled

SHORT = 64
"""Documents up to this length share one batch: their scores are cheap beside the cost of another call."""
ALIKE = 0.75
"""A batch takes documents down to this share of its longest, so at most 1.8 times the scores are computed."""


@dataclass(frozen=True)
class Borders:
    """Where documents begin and how long they are, on the host."""

    starts: list[int]
    lengths: list[int]

    @classmethod
    def of(cls, cu_seqlens: Tensor, tokens: int) -> "Borders":
        """Reads the borders [N + 1] of ``tokens`` packed tokens.

        Raises:
            ValueError: they do not rise from 0 to the number of tokens.
        """
        borders: list[int] = cu_seqlens.tolist()
        lengths = [end - start for start, end in zip(borders, borders[1:], strict=False)]
        if borders[0] != 0 or borders[-1] != tokens or min(lengths, default=-1) < 0:
            raise ValueError(
                f"cu_seqlens from {borders[0]} to {borders[-1]} does not cover one row of {tokens} tokens;"
                " flatten the batch to [1, B * T] and give every border in rising order"
            )
        return cls(borders[:-1], lengths)

    def batch(self, documents: list[int], device: torch.device) -> "Batch":
        """The places of some documents' tokens in one dense batch."""
        starts = torch.tensor([self.starts[document] for document in documents])[:, None]
        lengths = torch.tensor([self.lengths[document] for document in documents])[:, None]
        places = starts + torch.arange(int(lengths.max()))  # [n, L]
        padding = places >= starts + lengths
        kept = (~padding).flatten().nonzero().flatten()
        tokens = places.flatten()[kept]
        return Batch(places.masked_fill(padding, 0).to(device), padding.to(device), kept.to(device), tokens)


@dataclass(frozen=True)
class Batch:
    """Some packed documents as a dense batch of ``n`` rows of ``L`` tokens."""

    places: Tensor
    """[n, L] where each token stands among the packed ones; padding points at token 0."""
    padding: Tensor
    """[n, L] True where there is no token."""
    kept: Tensor
    """[m] which of the ``n * L`` places are tokens."""
    tokens: Tensor
    """[m] where these stand among the packed ones, on the host."""

    def take(self, x: Tensor) -> Tensor:
        """The tokens of ``x`` [T, ...] as rows [n, L, ...], zero where there is padding."""
        taken = x.index_select(0, self.places.flatten()).unflatten(0, self.places.shape)
        return taken.masked_fill(self.padding.reshape(*self.padding.shape, *[1] * (x.dim() - 1)), 0)


def join(rows: Sequence[Tensor], batches: Sequence[Batch], tokens: int) -> Tensor:
    """Puts the rows [n, L, ...] of batches back to packed tokens [T, ...], zero where no batch has one."""
    kept = torch.cat([x.flatten(0, 1).index_select(0, batch.kept) for x, batch in zip(rows, batches, strict=True)])
    at = torch.cat([batch.tokens for batch in batches])
    if len(at) < tokens:
        return kept.new_zeros(tokens, *kept.shape[1:]).index_copy(0, at.to(kept.device), kept)
    return kept.index_select(0, at.argsort().to(kept.device))


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Groups documents by length, longest first; those without tokens are left out."""
    order = sorted((index for index, length in enumerate(lengths) if length), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    for index in order:
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and (longest <= SHORT or lengths[index] >= ALIKE * longest):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


@uncompiled
def by_document(
    op: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor | None], cu_seqlens: Tensor | None
) -> tuple[Tensor, ...]:
    """Runs a causal ``op`` on every document by itself.

    Args:
        op: from inputs [n, L, ...], zero after each document's end, to outputs [n, L, ...]. It must not let a token
            depend on later ones, since these may be padding.
        inputs: [B, T, ...] each row one document, or [1, T, ...] packed; None is passed on.
        cu_seqlens: [N + 1] the borders of packed documents.

    Raises:
        ValueError: there is more than one row beside ``cu_seqlens``, or they do not cover the tokens.
    """
    if cu_seqlens is None or cu_seqlens.is_meta or isinstance(cu_seqlens, FakeTensor):
        return op(*inputs)  # Without values, as where work is counted, the tokens are taken for one document.
    first = next(x for x in inputs if x is not None)
    if first.shape[0] != 1:
        raise ValueError(f"cu_seqlens needs a batch of 1, got {first.shape[0]} rows; flatten them to [1, B * T]")
    borders = Borders.of(cu_seqlens, first.shape[1])
    lengths = borders.lengths
    if len(set(lengths)) == 1:
        cut = [None if x is None else x.reshape(len(lengths), lengths[0], *x.shape[2:]) for x in inputs]
        return tuple(x.reshape(1, first.shape[1], *x.shape[2:]) for x in op(*cut))
    batches = [borders.batch(documents, first.device) for documents in alike(lengths)]
    results = [op(*[None if x is None else batch.take(x[0]) for x in inputs]) for batch in batches]
    return tuple(join(rows, batches, first.shape[1]).unsqueeze(0) for rows in zip(*results, strict=True))
