"""Losses as sums over scored targets.

Every loss returns a SUM; the trainer divides once by the number of labels other than -100, counted over all ranks and
micro-batches. Gradient accumulation and every parallelism then agree by construction.
"""

from typing import Any

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100

# Logits alive at a time: 128 MiB in float32.
CHUNK_ELEMENTS = 2**25


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy in float32, summed over labels other than -100.

    Args:
        logits: [..., V], any floating dtype.
        labels: [...], already shifted: ``labels[t]`` is the target of position t.

    Returns:
        A float32 scalar.
    """
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def linear_cross_entropy_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    chunk_rows: int = 0,
) -> torch.Tensor:
    """``cross_entropy_sum(hidden @ weight.T + bias, labels)`` without ever holding all logits.

    Gradients are formed chunk by chunk during the forward pass, so the work is that of the plain version and the
    memory is that of one chunk.

    Args:
        hidden: [..., H].
        weight: [V, H], same dtype as ``hidden``.
        bias: [V] or None.
        labels: [...], -100 where not scored.
        chunk_rows: rows of logits computed at a time; 0 takes as many as ``CHUNK_ELEMENTS`` allows.

    Returns:
        A float32 scalar.
    """
    chunk_rows = chunk_rows or max(1, CHUNK_ELEMENTS // weight.shape[0])
    return _ChunkedLinearCrossEntropy.apply(
        hidden.flatten(0, -2), weight, bias, labels.flatten(), chunk_rows, torch.is_grad_enabled()
    )


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # [N, H]
        weight: torch.Tensor,  # [V, H]
        bias: torch.Tensor | None,  # [V]
        labels: torch.Tensor,  # [N]
        chunk_rows: int,
        grad_enabled: bool,  # needs_input_grad does not know of no_grad()
    ) -> torch.Tensor:
        need_hidden, need_weight, need_bias = (grad_enabled and needed for needed in ctx.needs_input_grad[:3])
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Sums over many chunks lose too much in bfloat16.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and need_bias else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)

        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            h, target = hidden[rows], labels[rows]
            logits = F.linear(h, weight, bias).float()  # [C, V]
            scored = target != IGNORE_INDEX
            index = target.clamp(min=0).unsqueeze(1)
            log_z = torch.logsumexp(logits, dim=1, keepdim=True)
            loss += ((log_z - logits.gather(1, index)).squeeze(1) * scored).sum()
            if not (need_hidden or need_weight or need_bias):
                continue
            # d loss / d logits = softmax - one_hot(target), zero on rows that are not scored.
            grad = logits.sub_(log_z).exp_()
            grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
            grad = grad.mul_(scored.unsqueeze(1)).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight += grad.t() @ h
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=torch.float32)

        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = grad_outputs
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        return (
            grad_hidden * scale.to(grad_hidden.dtype) if grad_hidden is not None else None,
            (grad_weight * scale).to(ctx.weight_dtype) if grad_weight is not None else None,
            (grad_bias * scale).to(ctx.weight_dtype) if grad_bias is not None else None,
            None,
            None,
            None,
        )
