"""Muon: steps of hidden matrices are the orthogonal matrices nearest to their momentum; AdamW for all else.

https://kellerjordan.github.io/posts/muon/, with the defaults of nanochat (https://github.com/karpathy/nanochat).
"""

# torch exports its foreach functions under private names only.
# pyright: reportPrivateImportUsage=false

from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from torch import Tensor

from flame.optim.exchange import Exchange, exchanges, owned_where_it_lies
from flame.optim.grouped import GroupedOptimizer, adamw_state, adamw_step
from flame.optim.groups import Parameter
from flame.optim.local import local, local_gradient
from flame.optim.matrices import matrices_of
from flame.optim.orthogonal import Coefficients, orthogonalize


@dataclass(frozen=True)
class Recipe:
    """How matrices are stepped."""

    polynomials: Coefficients
    dtype: torch.dtype
    """The type to orthogonalise in."""
    margin: float = 1.0
    """By how much norms are made smaller than 1 first."""
    momentum: float = 0.95
    momentum_start: float = 0.85
    momentum_warmup_steps: int = 300
    momentum_end: float | None = None
    """What momentum falls to over the last ``cooldown`` of ``steps``; None to stay."""
    steps: int = 0
    """Length of the run."""
    cooldown: int = 0
    cosine_weight_decay: bool = False
    cautious: bool = False
    """Whether only entries decay that the update makes smaller too."""
    equalize_rows: bool = False
    split_fused: bool = True

    def momentum_at(self, step: int) -> float:
        """The momentum of a step, counted from 0."""
        share = min(step / self.momentum_warmup_steps, 1.0) if self.momentum_warmup_steps else 1.0
        value = self.momentum_start + share * (self.momentum - self.momentum_start)
        begin = self.steps - self.cooldown
        if self.momentum_end is not None and step > begin:
            share = min((step - begin) / max(self.cooldown, 1), 1.0)
            value = self.momentum + share * (self.momentum_end - self.momentum)
        return value

    def decay_at(self, step: int) -> float:
        """What the weight decay of matrices is multiplied by in a step, counted from 0."""
        if not self.cosine_weight_decay:
            return 1.0
        return 0.5 * (1.0 + cos(pi * min(step / max(self.steps, 1), 1.0)))


class Muon(GroupedOptimizer):
    """Muon for the group of matrices, AdamW for the others.

    For a matrix W with gradient G: M <- m M + (1 - m) G; U = (1 - m) G + m M; W <- (1 - lr wd) W - lr s O(U), where
    O(U) is orthogonal and s = max(1, outputs / inputs)^0.5. Gradients of matrices are overwritten by U.

    Args:
        groups: as torch takes them; the first is that of the matrices, if there are any.
        parameters: what the parameters are, for the roles of the groups and the shapes of matrices.
        roles: the role of each group.
        recipe: how matrices are stepped.
    """

    def __init__(
        self, groups: list[dict[str, Any]], parameters: list[Parameter], roles: list[str], recipe: Recipe
    ) -> None:
        self.recipe = recipe
        self._known: dict[Tensor, Parameter] = {parameter.value: parameter for parameter in parameters}
        self._exchanges: dict[tuple[int, ...], list[Exchange]] = {}
        super().__init__(groups, roles)

    def initial_state(self, parameter: Tensor, group: dict[str, Any], role: str) -> dict[str, Any]:
        """Momentum for matrices, AdamW's state for others."""
        if role == "matrices":
            return {"step": 0, "momentum_buffer": torch.zeros_like(parameter)}
        return adamw_state(parameter, group["fused"])

    def update(self, group: dict[str, Any], role: str, parameters: list[Tensor]) -> None:
        """One step of a group's parameters that have gradients."""
        states = [self.state[parameter] for parameter in parameters]
        if role != "matrices":
            return adamw_step(parameters, states, group)
        step = states[0]["step"]
        momentum = self.recipe.momentum_at(step)
        gradients = [local_gradient(parameter) for parameter in parameters]
        buffers = [local(state["momentum_buffer"]) for state in states]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        torch._foreach_lerp_(gradients, buffers, momentum)
        for exchange in self._plan(parameters):
            values = {number: gradients[number] for number in exchange.parts}
            stacks = exchange.gather(values, self.recipe.dtype)
            for stack, matrices in zip(exchange.stacks, stacks, strict=True):
                self._orthogonalize(matrices, stack.outputs_last)
                for number, matrix in zip(stack.numbers, matrices, strict=True):
                    if (scale := exchange.matrices[number].scale) != 1.0:
                        matrix.mul_(scale)
            self._apply(exchange.scatter(stacks), parameters, group, self.recipe.decay_at(step))
        for state in states:
            state["step"] += 1

    def _orthogonalize(self, matrices: Tensor, outputs_last: bool) -> None:
        if self.recipe.equalize_rows:
            inputs = -2 if outputs_last else -1
            norms = torch.linalg.vector_norm(matrices, dim=inputs, keepdim=True, dtype=torch.float32)
            mean = norms.square().mean((-2, -1), keepdim=True).sqrt()
            matrices.mul_((mean / norms.clamp_min(1e-12)).to(matrices.dtype))
        orthogonalize(matrices, self.recipe.polynomials, self.recipe.margin)

    def _apply(self, updates: dict[int, Tensor], parameters: list[Tensor], group: dict[str, Any], decay: float) -> None:
        lr, decay = group["lr"], group["lr"] * group["weight_decay"] * decay
        for number, update in updates.items():
            weight = local(parameters[number])
            if decay and self.recipe.cautious:
                weight.sub_(weight * (update * weight >= 0), alpha=decay)
            elif decay:
                weight.mul_(1 - decay)
            weight.add_(update, alpha=-lr)

    def _plan(self, parameters: list[Tensor]) -> list[Exchange]:
        """The exchanges for the parameters that have gradients, made once."""
        key = tuple(map(id, parameters))
        if key not in self._exchanges:
            matrices = []
            for number, parameter in enumerate(parameters):
                known = self._known[parameter]
                parts = known.parts if self.recipe.split_fused else ()
                shape = local(parameter).shape if owned_where_it_lies(parameter) else parameter.shape
                matrices += matrices_of(number, shape, parts, known.transposed)
            self._exchanges[key] = exchanges(matrices, parameters)
        return self._exchanges[key]
