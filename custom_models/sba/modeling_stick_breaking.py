"""Stick-breaking attention: Tan et al. 2024, https://arxiv.org/abs/2410.17980.

With scores ``z`` of a query against the keys before it, the nearest key takes ``sigmoid(z)`` of a stick of length 1,
the next nearest its share of what is left, and so on:

    A[i, j] = sigmoid(z[i, j]) * prod_{j < l < i} (1 - sigmoid(z[i, l]))        sum_j A[i, j] + left[i] = 1
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

BLOCK = 128
"""Queries whose scores are computed at a time."""
HELD = 1 << 24
"""Scores kept for the backward pass (64 MiB in float32); more are computed again."""
WIDEST_HEAD = 256
"""Dimensions of a head that fla's kernel takes."""


@dataclass(frozen=True)
class Documents:
    """Which tokens of a batch may see each other, besides that they look back only."""

    numbers: Tensor
    """[B, S] equal for tokens of one document; padding counts as one of its own."""
    borders: Tensor | None
    """[N + 1] where documents begin in the rows put one after the other; None if they are not in one piece each."""

    @classmethod
    def of(cls, numbers: Tensor, whole: bool = True) -> "Documents | None":
        """Describes rows [B, S] of document numbers; None if each row is one document.

        Args:
            numbers: as above.
            whole: whether equal numbers of a row are always neighbours.
        """
        changes = numbers[:, 1:] != numbers[:, :-1]
        if not changes.any():
            return None
        if not whole:
            return cls(numbers, None)
        begins = torch.cat([torch.ones_like(changes[:, :1]), changes], 1).flatten().nonzero().flatten()
        return cls(numbers, torch.cat([begins, begins.new_tensor([numbers.numel()])]).to(torch.int32))


def stick_breaking(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents | None = None, attend_current: bool = False
) -> tuple[Tensor, Tensor]:
    """Stick-breaking attention of the last T of S tokens; on an accelerator by fla's kernel where that can serve.

    Args:
        q: [B, HQ, T, K].
        k: [B, H, S, K]; ``HQ`` is a multiple of ``H``.
        v: [B, H, S, V].
        documents: of all S tokens; None where each row is one document.
        attend_current: whether a query sees the key of its own token.

    Returns:
        Outputs [B, HQ, T, V] and what is left of each query's stick [B, HQ, T], in the dtype of ``q``.
    """
    whole = q.shape[2] == k.shape[2] and (documents is None or documents.borders is not None)
    small = q.dtype in (torch.float16, torch.bfloat16) and max(q.shape[-1], v.shape[-1]) <= WIDEST_HEAD
    if q.device.type in ("cuda", "xpu") and whole and small:
        try:
            # Here, since fla takes seconds to import and a CPU has no use for it.
            from fla.ops.stickbreaking_attn import parallel_stickbreaking_attn
        except ImportError:
            pass
        else:
            return _by_kernel(parallel_stickbreaking_attn, q, k, v, documents, attend_current)
    return _by_blocks(q, k, v, None if documents is None else documents.numbers, attend_current)


def _by_kernel(kernel, q, k, v, documents, attend_current):
    batch, q, k, v = len(q), *(x.transpose(1, 2) for x in (q, k, v))  # [B, T, H, D]
    if documents is None:
        o, left = kernel(q, k, v, attend_current=attend_current)
    else:
        q, k, v = (x.flatten(0, 1).unsqueeze(0) for x in (q, k, v))
        o, left = kernel(q, k, v, attend_current=attend_current, cu_seqlens=documents.borders)
        o, left = (x.unflatten(1, (batch, -1)).squeeze(0) for x in (o, left))
    return o.transpose(1, 2), left.transpose(1, 2)


@torch.compiler.disable()  # its loop over blocks would be unrolled for minutes
def _by_blocks(q: Tensor, k: Tensor, v: Tensor, numbers: Tensor | None, attend_current: bool) -> tuple[Tensor, Tensor]:
    grouped = q.unflatten(1, (k.shape[1], -1))  # [B, H, G, T, K]: the queries beside the key they share
    o, left = _StickBreaking.apply(grouped, k, v, numbers, q.shape[-1] ** -0.5, attend_current)
    return o.flatten(1, 2).to(q.dtype), left.flatten(1, 2).to(q.dtype)


class _StickBreaking(torch.autograd.Function):
    """Goes over blocks of queries, in the backward pass again, so that scores of all pairs need not exist at once."""

    @staticmethod
    def forward(ctx, q, k, v, numbers, scale, attend_current):
        inputs = q, k, v, numbers
        (q, k, v), _ = _widened(q, k, v)
        outputs, sticks, held = [], [], []
        keeps = any(ctx.needs_input_grad) and q[..., 0].numel() * k.shape[2] // 2 <= HELD
        with torch.autocast("cpu" if q.is_meta else q.device.type, enabled=False):
            for own, seen, hidden in _blocks(q, k, numbers, attend_current):
                broken = _break(q[:, :, :, own] * scale, k[:, :, seen], hidden)
                outputs.append(_rows(broken[1], v[:, :, seen]))
                sticks.append(broken[2])
                held += broken if keeps else ()
        ctx.save_for_backward(*inputs, *held)
        ctx.scale, ctx.attend_current = scale, attend_current
        return torch.cat(outputs, 3), torch.cat(sticks, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dleft):
        """With ``g = A dA``: ``dz[j] = g[j] - sigmoid(z[j]) (sum of g over j and what is farther + left dleft)``."""
        q, k, v, numbers, *held = ctx.saved_tensors
        dtypes = [x.dtype for x in (q, k, v)]
        (q, k, v), dtype = _widened(q, k, v)
        do, dleft = do.to(dtype), dleft.to(dtype).unsqueeze(-1)
        dq, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
        with torch.autocast(q.device.type, enabled=False):
            for own, seen, hidden in _blocks(q, k, numbers, ctx.attend_current):
                queries, out = q[:, :, :, own] * ctx.scale, do[:, :, :, own]
                scores, weights, left = (
                    [held.pop(0) for _ in range(3)] if held else _break(queries, k[:, :, seen], hidden)
                )
                g = _rows(out, v[:, :, seen].mT).mul_(weights)
                sums = g.cumsum(-1)
                farther = (sums[..., -1:] - sums).add_(g).add_((left * dleft[:, :, :, own, 0]).unsqueeze(-1))
                dz = g.addcmul_(scores.sigmoid(), farther, value=-1).masked_fill_(hidden, 0)
                dq.append(_rows(dz, k[:, :, seen]).mul_(ctx.scale))
                dk[:, :, seen] += dz.flatten(2, 3).mT @ queries.flatten(2, 3)
                dv[:, :, seen] += weights.flatten(2, 3).mT @ out.flatten(2, 3)
        gradients = (torch.cat(dq, 3), dk.flip(2), dv.flip(2))
        return *(x.to(kind) for x, kind in zip(gradients, dtypes, strict=True)), None, None, None


def _widened(q: Tensor, k: Tensor, v: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], torch.dtype]:
    """In float32 at least, with keys and values from the last token back: running sums start at the nearest key."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return (q.to(dtype), k.to(dtype).flip(2), v.to(dtype).flip(2)), dtype


def _blocks(
    q: Tensor, k: Tensor, numbers: Tensor | None, attend_current: bool
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of queries: which of the T they are, which of the S flipped keys they may see, and [.., C, N] True where a
    key is hidden from a query after all.
    """
    count, length = q.shape[3], k.shape[2]
    tokens = torch.arange(length, device=q.device)
    for start in range(length - count, length, BLOCK):
        stop, first = min(start + BLOCK, length), 0
        alike = None
        if numbers is not None:
            alike = numbers[:, start:stop, None] == numbers[:, None, :stop]  # [B, C, N]
            first = int(alike.any(1).any(0).int().argmax())  # no query of the block sees an earlier key
        hidden = tokens[first:stop] > tokens[start:stop, None] - (0 if attend_current else 1)  # [C, N]
        if alike is not None:
            hidden = (hidden | ~alike[:, :, first:])[:, None, None]
        yield (
            slice(start - (length - count), stop - (length - count)),
            slice(length - stop, length - first),
            hidden.flip(-1),
        )


def _break(q: Tensor, k: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and weights [B, H, G, C, N] of queries [B, H, G, C, K] over keys [B, H, N, K], and what is left."""
    scores = _rows(q, k.mT)
    passed = logsigmoid(-scores).masked_fill_(hidden, 0)  # log(1 - sigmoid(score)), of which small ones add up
    logs = scores + passed  # log sigmoid(score)
    sums = passed.cumsum(-1)
    # Of the nearer keys alone: the own share may be so large that taking it off again would lose the others.
    logs[..., 1:] += sums[..., :-1]
    return scores, logs.masked_fill_(hidden, -torch.inf).exp_(), sums[..., -1].exp()


def _rows(x: Tensor, y: Tensor) -> Tensor:
    """[B, H, G, C, N] times [B, H, N, D], without a copy of the latter for every group."""
    return (x.flatten(2, 3) @ y).unflatten(2, x.shape[2:4])
