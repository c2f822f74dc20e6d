"""Stick-breaking attention: Tan et al. 2024, https://arxiv.org/abs/2410.17980.

From the nearest key back, each takes ``sigmoid(score)`` of what the nearer ones have left of a stick of length 1.
"""

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from flame.ops.documents import by_document
from flame.ops.precision import wide
from flame.ops.rows import Span, against, by_rows, check_heads, fold, scaling, unfold, weigh


def parallel_stickbreaking_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    attend_current: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention whose weights break a stick from the nearest key on.

    Args:
        q: [B, T, HQ, K].
        k: [B, T, H, K]; ``HQ`` is a multiple of ``H``.
        v: [B, T, H, V].
        scale: of the scores; None for ``K ** -0.5``.
        attend_current: whether a query sees the key of its own token.
        cu_seqlens: [N + 1] the borders of packed documents, with a batch of 1.

    Returns:
        The outputs [B, T, HQ, V] and what is left of each query's stick [B, T, HQ], in the dtype of ``q``.

    Raises:
        ValueError: shapes that do not fit each other, or borders that do not cover one row.
    """
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"shapes q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit: give"
            " [B, T, HQ, K], [B, T, H, K], [B, T, H, V]; for one query against a cache see"
            " stickbreaking_decode"
        )
    check_heads(q.shape[2], k.shape[2])
    factor = scaling(scale, k)

    def dense(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return _break(q, k, v, factor, 0 if attend_current else -1)

    o, left = by_document(dense, (q, k, v), cu_seqlens)
    return o, left


def stickbreaking_decode(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, attend_current: bool = False
) -> tuple[Tensor, Tensor]:
    """The last queries [B, T, HQ, K] against all keys [B, S, H, K] and values [B, S, H, V], their own included.

    Returns, raises: as ``parallel_stickbreaking_attn``.
    """
    check_heads(q.shape[2], k.shape[2])
    o, left = _break(q, k, v, scaling(scale, k), 0 if attend_current else -1)
    return o, left


def stickbreaking_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    output_attentions: bool = False,
    use_cache: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None, None]:
    """The forward pass of fla's ``StickBreakingAttention`` layer, whose own refuses a CPU.

    Args:
        hidden_states: [B, T, D].
        attention_mask: [B, T] 1 where there is a token.
        cu_seqlens: [N + 1] among ``kwargs``, the borders of packed documents, with a batch of 1.

    Returns:
        [B, T, D], and None twice: no weights and no cache.

    Raises:
        NotImplementedError: a cache or the weights are asked for.
        TypeError: float32 off the CPU, which fla's kernel does not take.
    """
    if use_cache or past_key_values is not None or output_attentions:
        raise NotImplementedError("stick-breaking attention has no cache and returns no weights; pass use_cache=False")
    layer = importlib.import_module("fla.layers.stickbreaking_attn")
    batch, length = hidden_states.shape[:2]
    x, indices, cu_seqlens = layer.unpad_hidden_states(hidden_states, kwargs.get("cu_seqlens"), attention_mask, length)
    q, k, v = (y(x).unflatten(-1, (-1, self.head_dim)) for y in (self.q_proj, self.k_proj, self.v_proj))
    if q.device.type != "cpu" and q.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"stick-breaking kernels take float16 and bfloat16, got {q.dtype}; use mixed precision")
    if self.qk_norm:
        q, k = self.q_norm(q), self.k_norm(k)
    o, _ = layer.parallel_stickbreaking_attn(q, k, v, attend_current=self.attend_current, cu_seqlens=cu_seqlens)
    return layer.repad_hidden_states(self.o_proj(o.flatten(-2)), indices, batch, length), None, None


def _break(q: Tensor, k: Tensor, v: Tensor, scale: float, diagonal: int) -> tuple[Tensor, Tensor]:
    heads, dtype = k.shape[2], q.dtype

    def body(span: Span, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        # From the nearest key back, so that running sums start there.
        k, v = wide(k).flip(-2), wide(v).flip(-2)
        scores = against(wide(q) * scale, k)  # [B, H, G, C, S]
        hidden = span.hidden(q.device, diagonal).flip(-1)
        passed = logsigmoid(-scores)  # log(1 - sigmoid(score)), of which small ones add up
        taken = scores + passed
        passed = passed.masked_fill(hidden, 0)
        # What the later keys have left, without the own share: that may be so large that a difference would lose it.
        later = pad(passed[..., :-1], (1, 0)).cumsum(-1)
        weights = (taken + later).masked_fill(hidden, -torch.inf).exp()
        return weigh(weights, v), passed.sum(-1, keepdim=True).exp()

    o, left = by_rows(body, [fold(q, heads)], [x.transpose(1, 2) for x in (k, v)])
    return unfold(o).to(dtype), unfold(left).squeeze(-1).to(dtype)


def stickbreaking_by_token(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, attend_current: bool = False
) -> tuple[Tensor, Tensor]:
    """What ``parallel_stickbreaking_attn`` computes for dense rows, key by key from the nearest in float64."""
    factor = scaling(scale, k)
    group = q.shape[2] // k.shape[2]
    queries, keys, values = q.double(), k.double().repeat_interleave(group, 2), v.double().repeat_interleave(group, 2)
    outputs, sticks = [], []
    for place in range(q.shape[1]):
        stick = torch.ones_like(queries[:, place, :, 0])  # [B, HQ]
        output = torch.zeros_like(values[:, place])
        for key in range(place if attend_current else place - 1, -1, -1):
            share = ((queries[:, place] * keys[:, key]).sum(-1) * factor).sigmoid()
            output = output + (stick * share).unsqueeze(-1) * values[:, key]
            stick = stick * (1 - share)
        outputs.append(output)
        sticks.append(stick)
    return torch.stack(outputs, 1), torch.stack(sticks, 1)
