"""What routers return, and the sequence-wise balance loss of it.

The loss is attached to the router's weights: they pass unchanged, and in the backward pass the loss receives gradient
1. So it needs no way to the model's output, and is the same in every layout, pipeline stages included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(-1),
    "square root of softplus": lambda logits: F.softplus(logits).sqrt(),
}
"""How logits [N, E] become scores, by name: DeepSeek V3, V2 (and Mixtral, Qwen), V4."""


@dataclass
class Routing:
    """What a router returns, by meaning."""

    logits: Tensor | None
    """[N, E]; None if it keeps them."""
    weights: Tensor | None
    """[N, K], of the chosen experts."""
    chosen: Tensor
    """[N, K], indices of experts."""
    experts: int
    """Number of experts that choices and logits show."""


def routing_of(output: Any) -> Routing | None:
    """The parts of a router's output; None if it holds no choices."""
    tensors = [value for value in output if isinstance(value, Tensor)] if isinstance(output, tuple) else []
    chosen = next((value for value in tensors if not value.is_floating_point() and value.dtype != torch.bool), None)
    if chosen is None or chosen.dim() != 2:
        return None
    floating = [value for value in tensors if value.is_floating_point()]
    weights = next((value for value in reversed(floating) if value.shape == chosen.shape), None)
    logits = next((value for value in floating if value is not weights and len(value) == len(chosen)), None)
    if logits is None and weights is None:
        return None
    experts = logits.shape[-1] if logits is not None else int(chosen.max()) + 1
    return Routing(logits, weights, chosen, experts)


@torch.no_grad()
def fitting_scores(routing: Routing) -> list[str]:
    """Names of the functions of ``SCORES`` that a router's weights are proportional to, whatever it does to their sum
    and scale."""
    if routing.logits is None or routing.weights is None:
        return []
    fitting = []
    for name, function in SCORES.items():
        ratio = routing.weights.float() / function(routing.logits.float()).gather(1, routing.chosen.long())
        spread = (ratio.amax(-1) - ratio.amin(-1)) / ratio.abs().amax(-1).clamp_min(1e-20)
        if bool((spread < 1e-2).all()):  # weights may be bfloat16
            fitting.append(name)
    return fitting


def sequence_balance(scores: Tensor, top_k: int, length: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """How unevenly each sequence loads the experts (DeepSeek-V3, https://arxiv.org/abs/2412.19437, equations 17 to 20).

    ``sum_i f_i P_i`` with ``f_i`` = E / (K T) x the positions whose K largest scores include expert i, and ``P_i`` the
    mean of expert i's share of the scores. It is about 1 for an even load and E / K at worst. A row of packed documents
    counts as one sequence.

    Args:
        scores: [N, E] of whole rows, one after the other; differentiable.
        top_k: K.
        length: positions of a sequence on this rank.
        group: the ranks that hold the other positions; the results of all add up to the balance.

    Returns:
        [N / length], this rank's share for each sequence.
    """
    experts = scores.shape[-1]
    shares = (scores / scores.sum(-1, keepdim=True)).view(-1, length, experts)  # [B, T, E]
    largest = shares.detach().topk(top_k, dim=-1).indices.flatten(1)  # [B, T * K]
    frequency = shares.new_zeros(len(shares), experts).scatter_add_(1, largest, torch.ones_like(largest).to(shares))
    if group is not None:
        dist.all_reduce(frequency, group=group)
        length = length * dist.get_world_size(group)
    frequency *= experts / (top_k * length)
    return (frequency * shares.sum(1) / length).sum(-1)


def attach_loss(output: tuple[Any, ...], routing: Routing, loss: Tensor) -> tuple[Any, ...]:
    """The router's output with a loss attached to its weights (or logits, where it returns no weights)."""
    carrier = routing.weights if routing.weights is not None else routing.logits
    assert carrier is not None
    return tuple(_Attached.apply(value, loss) if value is carrier else value for value in output)


class _Attached(torch.autograd.Function):
    """Hands a tensor on and gives a loss that nothing adds up the gradient 1."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, loss: Tensor) -> Tensor:
        ctx.options = {"dtype": loss.dtype, "device": loss.device}
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return gradient, torch.ones((), **ctx.options)
