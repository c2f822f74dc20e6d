"""The delta rule in chunks: a linear recurrence that removes before it writes, with any decay of the state.

    S_t = D_t S_{t-1} + k_t (v_t - e_t^T D_t S_{t-1}),    o_t = S_t^T q_t

``e`` (the erase keys) and ``v`` already carry what a layer calls beta, so that one core serves DeltaNet (e = beta k),
Gated DeltaNet and KDA (with decays per head and per channel), preconditioned keys (k != e) and separate erase and write
gates. Inside a chunk the removals form a triangular system, whose inverse turns the recurrence into matrix products
(the WY representation): "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv:2406.06484;
with decays: "Gated Delta Networks", arXiv:2412.06464; per channel: "Kimi Linear", arXiv:2510.26692.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from flame.ops.chunks import CHUNK, Chunks, chunks_of
from flame.ops.decay import SPAN, channel_scores, cumulative, decay_mask, largest, scaled
from flame.ops.precision import precision
from flame.ops.rows import exact, uncompiled
from flame.ops.states import documents_of, state_like


@uncompiled
def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    erase: Tensor,
    g: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    erase_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """The delta rule over every document.

    Args:
        q: [B, T, H, K] queries, already scaled.
        k: [B, T, H, K] the keys that are written.
        v: [B, T, H, V] the values, already gated.
        erase: [B, T, H, K] the keys that are read and removed, already gated.
        g: log decays, [B, T, H, 1] per head or [B, T, H, K] per channel; None for no decay.
        initial_state: [N, H, K, V]; None for zeros.
        cu_seqlens: [N + 1] borders of packed documents, of one row.
        erase_first: reads what to remove from S_{t-1} before its decay (arXiv:2506.02475), with decays per head.

    Returns:
        Outputs [B, T, H, V] in the dtype of ``v`` and the final states [N, H, K, V] in float32 (float64 for float64).

    Raises:
        ValueError: ``cu_seqlens`` does not fit the tokens.
    """
    with exact(v):
        layout = chunks_of(v, cu_seqlens, chunk_size(v))
        state = state_like(initial_state, layout.documents, k, v)
        q, k, v, erase = (layout.split(x.to(v.dtype)) for x in (q, k, v, erase))
        chunk = _decayed(q, k, erase, None if g is None else cumulative(layout.split(g)), erase_first)
        inverse = unit_lower_inverse(chunk.overlaps.to(precision(v))).to(v.dtype)
        written = inverse @ v  # what each token writes if the chunk begins with an empty state
        removed = inverse @ chunk.erase
        states, written, final = walk_states(layout, written, removed, chunk.k, chunk.keep, state)
        return layout.join(chunk.q @ states.to(v.dtype) + chunk.scores @ written), final


class _Chunk(NamedTuple):
    """Rows with the decays since the chunk's beginning, or until its end, multiplied in."""

    q: Tensor
    """[R, H, C, K] decayed since the beginning."""
    k: Tensor
    """[R, H, C, K] decayed until the end."""
    erase: Tensor
    """[R, H, C, K] decayed since the beginning."""
    scores: Tensor
    """[R, H, C, C] queries against keys, causal."""
    overlaps: Tensor
    """[R, H, C, C] erase keys against earlier keys; only the part below the diagonal means something."""
    keep: Tensor | None
    """[R, H, 1 or K, 1] what remains of a state after the chunk."""


def _decayed(q: Tensor, k: Tensor, erase: Tensor, g: Tensor | None, erase_first: bool) -> _Chunk:
    if g is None:
        return _Chunk(q, k, erase, (q @ k.mT).tril(), erase @ k.mT, None)
    keep = g[..., -1:, :].to(precision(q)).exp().mT
    since = exponential(g, q.dtype)
    if g.shape[-1] != 1:
        q_since, erase_since = q * since, erase * since
        if moderate(g):
            begun = scaled(k, -g)
            scores, overlaps, ended = (q_since @ begun.mT).tril(), erase_since @ begun.mT, begun * keep.mT.to(q.dtype)
        else:
            scores, overlaps = channel_scores(torch.stack([q, erase]), k, g).unbind(0)
            ended = scaled(k, g[..., -1:, :] - g)
        return _Chunk(q_since, ended, erase_since, scores, overlaps, keep)
    mask = decay_mask(g).to(q.dtype)
    erase_mask, erase_since = (shifted(mask), shifted(since, 1.0)) if erase_first else (mask, since)
    ended = scaled(k, g[..., -1:, :] - g)
    return _Chunk(q * since, ended, erase * erase_since, (q @ k.mT) * mask, (erase @ k.mT) * erase_mask, keep)


def chunk_size(x: Tensor) -> int:
    """Tokens per chunk: a core computes less with small chunks, a GPU waits less with large ones."""
    return CHUNK // 2 if x.device.type == "cpu" else CHUNK


def exponential(g: Tensor, dtype: torch.dtype) -> Tensor:
    """``exp(g)`` in ``dtype``, computed in float32 at least."""
    return g.to(torch.float64 if dtype == torch.float64 else torch.float32).exp().to(dtype)


def moderate(g: Tensor) -> bool:
    """True where ``exp(-g)`` of running sums stays far from overflow, so that decays between tokens factor."""
    return largest(g.detach()) <= SPAN


def shifted(x: Tensor, first: float = 0.0) -> Tensor:
    """``x`` [..., C, D] one row down, with ``first`` above: what was known before each token."""
    return pad(x[..., :-1, :], (0, 0, 1, 0), value=first)


def walk_states(
    layout: Chunks,
    written: Tensor,
    removed: Tensor,
    keys: Tensor,
    keep: Tensor | None,
    state: Tensor,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Carries ``S' = keep S + added + keys^T (written - removed S)`` through the chunks.

    Args:
        written, removed, keys: rows [R, H, C, V], [R, H, C, K] and [R, H, C, K].
        keep: [R, H, 1 or K, 1]; None keeps all.
        state: [N, H, K, V] before the first tokens.
        added: [R, H, K, V]; None adds nothing.

    Returns:
        The states before each chunk [R, H, K, V], ``written - removed S`` [R, H, C, V], and the final states.
    """
    take = by_steps(layout, written, removed, keys.mT, keep, added)
    before: list[Tensor] = []

    def step(state: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        written, removed, keys, keep, added = take(rows)
        before.append(state)
        written = written - removed @ state.to(written.dtype)
        kept = state if keep is None else state * keep
        return written, kept + keys @ written if added is None else kept + added + keys @ written

    written, final = layout.walk(state, step)
    return torch.cat(before), written, final


def by_steps(layout: Chunks, *parts: Any) -> Callable[[slice], tuple[Any, ...]]:
    """What gives a walk the rows of ``parts`` [R, ...] (or None) that it asks for, one step after the other.

    They are split at once: the gradient of a slice taken in each step would be as large as the whole.
    """
    nothing = [None] * len(layout.steps)
    steps = iter(zip(*(nothing if x is None else x.split(layout.steps) for x in parts), strict=True))
    return lambda rows: parts if rows.stop - rows.start == layout.rows else next(steps)


class _UnitLowerInverse(torch.autograd.Function):
    """The inverse needs two products in its gradient, and only itself for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)
        inverse = torch.linalg.solve_triangular(x, eye, upper=False, unitriangular=True)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return (inverse.mT @ grad_outputs[0] @ inverse.mT).tril(-1).neg()


def unit_lower_inverse(x: Tensor) -> Tensor:
    """``(I + tril(x, -1))^{-1}`` of ``x`` [..., C, C], of which the diagonal and what lies above are not read."""
    return torch.ones_like(x) if x.shape[-1] == 1 else _UnitLowerInverse.apply(x)


def delta_rule_by_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    erase: Tensor,
    g: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    erase_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """``delta_rule`` token by token in the dtype given: what defines it."""
    outputs, states = [], []
    for index, (row, part) in enumerate(documents_of(v, cu_seqlens)):
        state = v.new_zeros(v.shape[2], k.shape[-1], v.shape[-1]) if initial_state is None else initial_state[index]
        tokens = []
        for t in part:
            decayed = state if g is None else state * g[row, t].exp().unsqueeze(-1)
            read = torch.einsum("hk,hkv->hv", erase[row, t], state if erase_first else decayed)
            state = decayed + torch.einsum("hk,hv->hkv", k[row, t], v[row, t] - read)
            tokens.append(torch.einsum("hk,hkv->hv", q[row, t], state))
        outputs += tokens
        states.append(state)
    return torch.stack(outputs).view_as(v), torch.stack(states)
