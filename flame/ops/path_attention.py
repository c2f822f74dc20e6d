"""PaTH attention: Yang et al. 2025, https://arxiv.org/abs/2505.16381.

Between a key and a later query stand the Householder-like maps ``I - beta_t w_t w_t^T`` of the tokens after the key.
The walk keeps every earlier key as it stands at the current block, mapped by all tokens in between; so a block costs
products with the earlier keys, and the keys at the end are the cache that decoding goes on from.
"""

import torch
from torch import Tensor

from flame.ops.documents import by_document
from flame.ops.precision import wide
from flame.ops.rows import (
    BLOCK,
    against,
    check_heads,
    exact,
    faded,
    fold,
    many,
    recomputed,
    scaling,
    summed,
    uncompiled,
    unfold,
    weigh,
)


@uncompiled
def parallel_path_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    scale: float = None,  # pyright: ignore[reportArgumentType]
    cu_seqlens: Tensor | None = None,
    use_cache: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Causal softmax attention whose scores pass through the maps of all tokens between key and query.

    Args:
        q: [B, T, HQ, K].
        k, w: [B, T, H, K]; ``HQ`` is a multiple of ``H``.
        v: [B, T, H, V].
        beta: [B, T, H].
        g: [B, T, HQ] log forget gates, scaled as the scores are.
        scale: of the scores; None for ``K ** -0.5``.
        cu_seqlens: [N + 1] the borders of packed documents, with a batch of 1.
        use_cache: whether to return the keys for decoding.

    Returns:
        The outputs [B, T, HQ, V] in the dtype of ``q``, and the keys [B, T, H, K] as the next token's query meets them
        but for that token's own map, or None.

    Raises:
        ValueError: shapes that do not fit each other, or borders that do not cover one row.
    """
    check_heads(q.shape[2], k.shape[2])
    if k.shape != w.shape or q.shape[-1] != k.shape[-1] or beta.shape != k.shape[:3]:
        raise ValueError(
            f"shapes q {tuple(q.shape)}, k {tuple(k.shape)}, w {tuple(w.shape)}, beta {tuple(beta.shape)}"
            " do not fit: give [B, T, HQ, K], [B, T, H, K] twice, [B, T, H]"
        )
    factor = scaling(scale, k)

    def dense(q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, g: Tensor | None) -> tuple[Tensor, ...]:
        o, keys = _walk(q, k, v, w, beta, g, factor)
        return (o, keys) if use_cache else (o,)

    outputs = by_document(dense, (q, k, v, w, beta, g), cu_seqlens)
    return outputs[0], outputs[1] if use_cache else None


def _walk(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, g: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    heads, length = k.shape[2], k.shape[1]
    queries = fold(q, heads)  # [B, H, G, T, K]
    total, narrow = summed(g, heads) if g is not None else (None, True)

    def step(earlier: list[Tensor], own: list[Tensor], values: list[Tensor], sums: list[Tensor]) -> tuple[Tensor, ...]:
        q, k, w, beta = (wide(x) for x in own)
        mapped, crossed, keys = _maps(k, w, beta)
        through = against(q, w).tril()  # [B, H, G, C, C]
        scores = against(q, k) - weigh(through, crossed)
        if earlier:
            before = against(q - weigh(through, mapped), earlier[0])
            scores = torch.cat([before, scores], -1)
            keys = torch.cat([earlier[0] - (earlier[0] @ mapped.mT) @ w, keys], -2)
        if sums:
            scores = scores + faded(sums[-1], torch.cat(sums, -2), narrow, scores.dtype)
        hidden = torch.ones(q.shape[-2], scores.shape[-1], dtype=torch.bool, device=q.device)
        hidden = hidden.triu(scores.shape[-1] - q.shape[-2] + 1)
        weights = (scores * scale).masked_fill(hidden, -torch.inf).softmax(-1)
        return weigh(weights, wide(torch.cat(values, -2))), keys

    again = many(queries, length)
    rows = [x.split(BLOCK, -2) for x in (queries, *(x.transpose(1, 2) for x in (k, w, beta.unsqueeze(-1))))]
    values = v.transpose(1, 2).split(BLOCK, -2)
    sums = total.split(BLOCK, -2) if total is not None else ()
    earlier, outputs = [], []
    for index, own in enumerate(zip(*rows, strict=True)):
        inputs = earlier, list(own), list(values[: index + 1]), list(sums[: index + 1])
        with exact(q):
            o, keys = recomputed(step, *inputs) if again else step(*inputs)
        earlier = [keys]
        outputs.append(o)
    return unfold(torch.cat(outputs, -2)).to(q.dtype), earlier[0].transpose(1, 2).to(k.dtype)


def _maps(k: Tensor, w: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the maps of one block do, as a low-rank product (the WY form).

    Args:
        k, w: [B, H, C, K].
        beta: [B, H, C, 1].

    Returns:
        ``mapped`` [B, H, C, K] such that an earlier key ``x`` leaves the block as ``x - (x mapped^T) w``; ``crossed``
        [B, H, C, C], for each token how much of its ``w`` it takes from each key before it in the block; the keys as
        they leave the block.
    """
    scaled = w * beta
    # Unit diagonal: only what lies below it is read.
    both = torch.cat([scaled, (scaled @ k.mT).tril(-1)], -1)
    both = torch.linalg.solve_triangular(scaled @ w.mT, both, upper=False, unitriangular=True)
    mapped, crossed = both.split([k.shape[-1], k.shape[-2]], -1)
    return mapped, crossed, k - crossed.mT @ w


def path_by_token(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, g: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """What ``parallel_path_attn`` computes for dense rows, mapping all earlier keys token by token in float64."""
    factor = scaling(scale, k)
    group = q.shape[2] // k.shape[2]
    queries, values = q.double(), v.double().repeat_interleave(group, 2)
    gates = torch.zeros(q.shape[:3], dtype=torch.float64) if g is None else g.double()
    keys, bias, outputs = k.double()[:, :0], gates[:, :0], []
    for token in range(q.shape[1]):
        along = (keys * w[:, token, None].double()).sum(-1, keepdim=True)
        keys = keys - beta[:, token, None, :, None].double() * along * w[:, token, None].double()
        keys = torch.cat([keys, k.double()[:, token : token + 1]], 1)
        bias = torch.cat([bias + gates[:, token : token + 1], torch.zeros_like(gates[:, :1])], 1)
        scores = torch.einsum("bhd,bshd->bsh", queries[:, token], keys.repeat_interleave(group, 2)) + bias
        outputs.append(torch.einsum("bsh,bshd->bhd", (scores * factor).softmax(1), values[:, : token + 1]))
    return torch.stack(outputs, 1), keys
