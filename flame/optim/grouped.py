"""What flame's own optimizers share: groups of parameters by role, and state that exists before the first step."""

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from flame.optim.local import local, local_gradient


class GroupedOptimizer(Optimizer):
    """An optimizer whose state can be made without a step, and whose groups each have a role.

    Args:
        groups: as torch takes them; one for each role that occurs.
        roles: the role of each group.
    """

    def __init__(self, groups: list[dict[str, Any]], roles: Sequence[str]) -> None:
        self.roles = list(roles)
        super().__init__(groups, {})

    def initialize(self) -> None:
        """Makes the state that is missing; torch's own way takes a step, which the count of steps would remember."""
        for group, role in zip(self.param_groups, self.roles, strict=True):
            for parameter in group["params"]:
                if parameter not in self.state:
                    self.state[parameter] = self.initial_state(parameter, group, role)

    def initial_state(self, parameter: Tensor, group: dict[str, Any], role: str) -> dict[str, Any]:
        """The state of a parameter before its first step."""
        raise NotImplementedError

    def update(self, group: dict[str, Any], role: str, parameters: list[Tensor]) -> None:
        """One step of a group's parameters that have gradients."""
        raise NotImplementedError

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Steps all parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.initialize()
        for group, role in zip(self.param_groups, self.roles, strict=True):
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self.update(group, role, parameters)
        return loss


def adamw_state(parameter: Tensor, fused: bool) -> dict[str, Any]:
    """The state of AdamW before its first step, under torch's names."""
    device = local(parameter).device if fused else torch.device("cpu")
    return {
        "step": torch.zeros((), dtype=torch.float32, device=device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def adamw_step(parameters: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]) -> None:
    """torch's AdamW on this rank's parts: every value is stepped by itself, so no rank needs another."""
    beta1, beta2 = group["betas"]
    adamw(
        [local(parameter) for parameter in parameters],
        [local_gradient(parameter) for parameter in parameters],
        [local(state["exp_avg"]) for state in states],
        [local(state["exp_avg_sq"]) for state in states],
        [],
        [state["step"] for state in states],
        foreach=group["foreach"],
        fused=group["fused"],
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
