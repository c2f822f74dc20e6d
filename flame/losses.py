"""Losses as sums over scored targets.

Every loss returns a SUM; the trainer divides once by the number of labels other than -100, counted over all ranks and
micro-batches. Gradient accumulation and every parallelism then agree by construction.
"""

from typing import Any

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100

# Logits alive at a time: 64 MiB in bfloat16. Products of fewer rows are slower.
CHUNK_ELEMENTS = 2**25
# Rows turned into gradients at a time, in float32: few, so that they stay in cache.
_SOFTMAX_ROWS = 128


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
        need_hidden, need_weight, need_bias = (needed and grad_enabled for needed in ctx.needs_input_grad[:3])
        need_grad = need_hidden or need_weight or need_bias
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Sums over many chunks lose too much in bfloat16.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and need_bias else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        logits_of = torch.empty(min(chunk_rows, len(hidden)), len(weight), dtype=hidden.dtype, device=hidden.device)

        for start in range(0, len(hidden), chunk_rows):
            h, target = hidden[start : start + chunk_rows], labels[start : start + chunk_rows]
            logits = torch.mm(h, weight.t(), out=logits_of[: len(h)])  # [C, V]
            if bias is not None:
                logits += bias
            for rows in range(0, len(h), _SOFTMAX_ROWS):
                block = slice(rows, rows + _SOFTMAX_ROWS)
                loss += _softmax_block(logits[block], target[block], need_grad)
            grad = logits  # by now
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[start : start + chunk_rows])
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


def _softmax_block(logits: torch.Tensor, target: torch.Tensor, need_grad: bool) -> torch.Tensor:
    """Returns the summed loss of some rows; ``logits`` [R, V] become its gradient, softmax - one_hot(target)."""
    scored = target != IGNORE_INDEX
    index = target.clamp(min=0).unsqueeze(1)  # [R, 1]
    log_probs = torch.log_softmax(logits.float(), dim=1)
    loss = -(log_probs.gather(1, index).squeeze(1) * scored).sum()
    if need_grad:
        grad = log_probs.exp_()
        grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
        logits.copy_(grad)
        logits.masked_fill_(~scored.unsqueeze(1), 0)
    return loss
