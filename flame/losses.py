"""Losses as sums over scored targets.

Every loss returns a SUM; the trainer divides once by the number of labels other than -100, counted over all ranks and
micro-batches. Gradient accumulation and every parallelism then agree by construction.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

IGNORE_INDEX = -100

# Logits alive at a time: 64 MiB in bfloat16. Products of fewer rows are slower.
CHUNK_ELEMENTS = 2**25
# Rows turned into gradients at a time, in float32: few, so that they stay in cache.
_SOFTMAX_ROWS = 128


@dataclass(frozen=True)
class Vocabulary:
    """Where this rank's rows of an output weight lie in the whole vocabulary, the other ranks holding the other rows.

    The rows are dealt out as by ``torch.chunk``: all ranks hold equally many, the last ones fewer or none.
    """

    start: int
    """First row this rank holds."""
    size: int
    """Rows of all ranks together."""
    group: dist.ProcessGroup
    """The ranks that share the vocabulary; all of them compute the loss of the same positions."""

    @property
    def most_rows(self) -> int:
        """Rows of the rank that holds most."""
        return -(-self.size // self.group.size())


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
    *,
    vocabulary: Vocabulary | None = None,
    soft_cap: float = 0.0,
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
        vocabulary: given where ``weight`` and ``bias`` hold only some rows of the vocabulary. Every rank of its group
            then calls with the same ``hidden``, ``labels`` and ``chunk_rows`` and has the whole loss and the whole
            gradient of ``hidden``; the gradients of ``weight`` and ``bias`` are those of its own rows.
        soft_cap: the loss is that of ``capped_logits``, computed in float32.

    Returns:
        A float32 scalar.

    Raises:
        RuntimeError: with ``vocabulary``, if a label is neither -100 nor in the vocabulary.
    """
    # The largest share, not the own one: ranks that disagreed on the number of chunks would wait for each other.
    widest = len(weight) if vocabulary is None else vocabulary.most_rows
    chunk_rows = chunk_rows or max(1, CHUNK_ELEMENTS // widest)
    rows, targets = hidden.flatten(0, -2), labels.flatten()
    if vocabulary is not None:
        known = (targets == IGNORE_INDEX) | ((targets >= 0) & (targets < vocabulary.size))
        # No rank would find such a label among its rows. Does not wait for the device.
        torch._assert_async(known.all(), "a label is outside the vocabulary")  # type: ignore[attr-defined]
    return _ChunkedLinearCrossEntropy.apply(
        rows, weight, bias, targets, chunk_rows, vocabulary, soft_cap, torch.is_grad_enabled()
    )


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # [N, H]
        weight: torch.Tensor,  # [V, H], V of this rank
        bias: torch.Tensor | None,  # [V]
        labels: torch.Tensor,  # [N]
        chunk_rows: int,
        vocabulary: Vocabulary | None,
        soft_cap: float,
        grad_enabled: bool,  # needs_input_grad does not know of no_grad()
    ) -> torch.Tensor:
        need_hidden, need_weight, need_bias = (needed and grad_enabled for needed in ctx.needs_input_grad[:3])
        need_grad = need_hidden or need_weight or need_bias
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight: torch.Tensor | None = None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and need_bias else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        logits_of = torch.empty(min(chunk_rows, len(hidden)), len(weight), dtype=hidden.dtype, device=hidden.device)

        for start in range(0, len(hidden), chunk_rows):
            h, target = hidden[start : start + chunk_rows], labels[start : start + chunk_rows]
            logits = torch.mm(h, weight.t(), out=logits_of[: len(h)])  # [C, V]
            if bias is not None:
                logits += bias
            if vocabulary is None:
                for block in _blocks(logits):
                    loss += _softmax_block(logits[block], target[block], need_grad, soft_cap)
            else:
                loss += _shared_softmax(logits, target, need_grad, vocabulary, soft_cap)
            grad = logits  # by now
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[start : start + chunk_rows])
            if need_weight:
                # Sums over many chunks lose too much in bfloat16.
                product = grad.t() @ h
                grad_weight = product.float() if grad_weight is None else grad_weight.add_(product)
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=torch.float32)

        if need_weight and grad_weight is None:  # no rows at all
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        if grad_hidden is not None and vocabulary is not None:
            dist.all_reduce(grad_hidden, group=vocabulary.group)
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
            *[None] * 5,
        )


def _blocks(logits: torch.Tensor) -> list[slice]:
    """Rows of ``logits`` [C, V] to work on at a time."""
    # On an accelerator blocks would save nothing, and starting many small kernels takes longer than running them.
    size = _SOFTMAX_ROWS if logits.device.type == "cpu" else max(1, len(logits))
    return [slice(start, start + size) for start in range(0, len(logits), size)]


def _softmax_block(logits: torch.Tensor, target: torch.Tensor, need_grad: bool, soft_cap: float) -> torch.Tensor:
    """Returns the summed loss of some rows; ``logits`` [R, V] become its gradient, softmax - one_hot(target)."""
    scored = target != IGNORE_INDEX
    index = target.clamp(min=0).unsqueeze(1)  # [R, 1]
    values = capped_logits(logits.float(), soft_cap)
    log_probs = torch.log_softmax(values, dim=1)
    loss = -(log_probs.gather(1, index).squeeze(1) * scored).sum()
    if need_grad:
        grad = log_probs.exp_()
        grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
        logits.copy_(_through_cap(grad, values, soft_cap))
        logits.masked_fill_(~scored.unsqueeze(1), 0)
    return loss


def capped_logits(logits: torch.Tensor, soft_cap: float) -> torch.Tensor:
    """``soft_cap * tanh(logits / soft_cap)`` (Gemma 2, https://arxiv.org/abs/2408.00118); the logits if it is 0."""
    return soft_cap * torch.tanh(logits / soft_cap) if soft_cap else logits


def _through_cap(grad: torch.Tensor, capped: torch.Tensor, soft_cap: float) -> torch.Tensor:
    """The gradient of logits [R, V] from that of the capped ones."""
    return grad.mul_(1 - (capped / soft_cap) ** 2) if soft_cap else grad


def _shared_softmax(
    logits: torch.Tensor, target: torch.Tensor, need_grad: bool, vocabulary: Vocabulary, soft_cap: float
) -> torch.Tensor:
    """``_softmax_block`` of a chunk whose columns are spread over ranks; ``logits`` [C, V of this rank]."""
    scored = target != IGNORE_INDEX
    column = target - vocabulary.start
    own = scored & (column >= 0) & (column < logits.shape[1])  # [C]: the target is among this rank's columns
    index = column.clamp(0, max(logits.shape[1] - 1, 0)).unsqueeze(1)  # [C, 1]
    blocks = _blocks(logits) if logits.shape[1] else []  # without columns there is nothing to add and nothing to fill

    log_sum = torch.full((len(logits),), -torch.inf, dtype=torch.float32, device=logits.device)
    chosen = torch.zeros_like(log_sum)  # the target's logit
    for block in blocks:
        values = capped_logits(logits[block].float(), soft_cap)
        log_sum[block] = values.logsumexp(1)
        chosen[block] = values.gather(1, index[block]).squeeze(1).where(own[block], 0)
    log_sum, chosen = _over_ranks(log_sum, chosen, vocabulary.group)

    if need_grad:
        for block in blocks:
            values = capped_logits(logits[block].float(), soft_cap)
            grad = (values - log_sum[block].unsqueeze(1)).exp_()
            grad.scatter_add_(1, index[block], -own[block].unsqueeze(1).to(grad.dtype))
            logits[block] = _through_cap(grad, values, soft_cap).masked_fill_(~scored[block].unsqueeze(1), 0)
    return (log_sum - chosen).where(scored, 0).sum()


def _over_ranks(
    log_sum: torch.Tensor, chosen: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp over all columns, and the target's logit, both [C], of those over each rank's columns."""
    largest = log_sum.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    sums = torch.stack([(log_sum - largest).exp_(), chosen])
    dist.all_reduce(sums, group=group)
    return largest + sums[0].log(), sums[1]


def ctc_sum(logits: torch.Tensor, labels: torch.Tensor, steps: torch.Tensor, blank: int) -> torch.Tensor:
    """Summed CTC loss (Graves et al. 2006): minus the logarithm of the probability that some path reads as the labels.

    Args:
        logits: [B, T, V].
        labels: [B, L], -100 behind the last; a row of -100 alone is not scored.
        steps: [B], steps of each row before its padding.
        blank: the label that writes nothing.

    Returns:
        A float32 scalar; a row too short for its labels adds nothing.
    """
    lengths = (labels != IGNORE_INDEX).sum(1)
    log_probabilities = logits.float().log_softmax(-1).transpose(0, 1)  # [T, B, V]
    losses = F.ctc_loss(
        log_probabilities, labels.clamp(min=0), steps, lengths, blank=blank, reduction="none", zero_infinity=True
    )
    return (losses * (lengths > 0)).sum()
