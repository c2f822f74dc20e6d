"""DeltaFormer attention: Zhong et al. 2025, https://arxiv.org/abs/2505.19488.

Every token first takes out of its value what earlier values already say: ``u_t = v_t - beta_t sum_{s<t} p_ts u_s`` with
the softmax over the keys before it. Softmax attention then reads ``u``.
"""

import torch
from torch import Tensor

from flame.ops.documents import by_document
from flame.ops.precision import wide
from flame.ops.rows import BLOCK, exact, many, recomputed, uncompiled


@uncompiled
def deltaformer_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    C: int = 512,
) -> Tensor:
    """Causal softmax attention over values freed of what earlier ones say.

    Args:
        q, k, v: [B, T, H, D]; ``v`` may be of another width.
        beta: [B, T, H] how much is taken out; None for 1.
        attention_mask: [B, T] 1 where there is a token. As in fla only the reading leaves padding out, so that padding
            on the left changes ``u``.
        cu_seqlens: [N + 1] the borders of packed documents, with a batch of 1.
        C: a hint for other kernels; no effect.

    Returns:
        [B, T, H, D] in the dtype of ``q``; zero for padding.

    Raises:
        ValueError: heads that differ, a mask beside borders, or borders that do not cover one row.
    """
    if not q.shape[2] == k.shape[2] == v.shape[2]:
        heads = [x.shape[2] for x in (q, k, v)]
        raise ValueError(f"q, k, v with {heads} heads: DeltaFormer shares no keys, give as many heads to all")
    if attention_mask is not None and cu_seqlens is not None:
        raise ValueError("attention_mask beside cu_seqlens: packed documents have no padding, leave the mask out")
    outputs = by_document(lambda *x: (_walk(*x),), (q, k, v, beta, attention_mask), cu_seqlens)
    return outputs[0]


def _walk(q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, mask: Tensor | None) -> Tensor:
    scale = k.shape[-1] ** -0.5

    def step(own: list[Tensor], keys: list[Tensor], earlier: list[Tensor]) -> tuple[Tensor, ...]:
        q, v = wide(own[0]), wide(own[1])
        scores = q @ wide(torch.cat(keys, -2)).mT * scale  # [B, H, C, S]
        (count, length), left = scores.shape[-2:], scores.shape[-1] - q.shape[-2]
        ahead = torch.ones(count, length, dtype=torch.bool, device=q.device).triu(left)
        # A finite floor: the first token has no key before it, and -inf would make it NaN.
        taken = scores.masked_fill(ahead, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(ahead, 0)
        if beta is not None:
            taken = taken * wide(own[2])
        if left:
            v = v - taken[..., :left] @ torch.cat(earlier, -2)
        # Unit diagonal: only what lies below it is read.
        u = torch.linalg.solve_triangular(taken[..., left:], v, upper=False, unitriangular=True)
        ahead = ahead.triu(left + 1)
        if mask is not None:
            ahead = ahead | (mask[:, None, None, :length] == 0)
        weights = scores.masked_fill(ahead, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(ahead, 0)
        return weights @ torch.cat([*earlier, u], -2), u

    rows = [x.transpose(1, 2) for x in (q, v, *(() if beta is None else (beta.unsqueeze(-1),)))]
    pieces = [x.split(BLOCK, -2) for x in rows]
    keys = k.transpose(1, 2).split(BLOCK, -2)
    again = many(rows[0], k.shape[1])
    outputs, earlier = [], []
    for index, own in enumerate(zip(*pieces, strict=True)):
        inputs = list(own), list(keys[: index + 1]), list(earlier)
        with exact(q):
            o, u = recomputed(step, *inputs) if again else step(*inputs)
        outputs.append(o)
        earlier.append(u)
    o = torch.cat(outputs, -2).transpose(1, 2).to(q.dtype)
    return o if mask is None else o * (mask != 0)[..., None, None].to(o.dtype)


def deltaformer_by_token(q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None = None) -> Tensor:
    """What ``deltaformer_attn`` computes for dense rows, token by token in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    scale = k.shape[-1] ** -0.5
    freed, rows = [], []
    for token in range(q.shape[1]):
        scores = torch.einsum("bhd,bshd->bsh", q[:, token], k[:, : token + 1]) * scale
        u = v[:, token]
        if token:
            said = torch.einsum("bsh,bshd->bhd", scores[:, :-1].softmax(1), torch.stack(freed, 1))
            u = u - (said if beta is None else said * beta[:, token, :, None].double())
        freed.append(u)
        rows.append(torch.einsum("bsh,bshd->bhd", scores.softmax(1), torch.stack(freed, 1)))
    return torch.stack(rows, 1)
