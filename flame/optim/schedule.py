"""The learning rate's schedule: torchtitan's curve, by which every group's own base rate is multiplied."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchtitan.components.lr_scheduler import LRSchedulersContainer
from torchtitan.components.lr_scheduler import build_lr_schedulers as titan_schedulers
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.config import LRScheduler


class Schedule(LambdaLR):
    """A curve over steps; a checkpoint keeps only where on it the run is.

    torch's keeps the base rates by their position among the groups, which differ from one pipeline stage to the next,
    and leaves a loaded run at the rate of the curve it was saved with.
    """

    def __init__(self, optimizer: Optimizer, curve: Callable[[int], float]) -> None:
        self.scale = 1.0
        """What every rate is multiplied by besides; a run that has gone back to a checkpoint lowers it."""
        super().__init__(optimizer, curve)
        optimizer.register_load_state_dict_post_hook(lambda _: self._set_rates())

    def get_lr(self) -> list[Any]:
        """The rate of each group."""
        return [
            group["initial_lr"] * curve(self.last_epoch) * self.scale
            for curve, group in zip(self.lr_lambdas, self.optimizer.param_groups, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Where on the curve the run is."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        self._set_rates()

    def rescale(self, scale: float) -> None:
        """Multiplies every rate of the curve by ``scale``, instead of the scale before."""
        self.scale = scale
        self._set_rates()

    def _set_rates(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = self.get_lr()


def build_lr_schedulers(
    optimizers: OptimizersContainer, config: LRScheduler, training_steps: int
) -> LRSchedulersContainer:
    """torchtitan's schedulers with ``Schedule`` for each optimizer."""
    stand_in: Any = [torch.optim.SGD([torch.zeros(1)], lr=1.0)]
    made = titan_schedulers(stand_in, config, training_steps)
    curve = made.schedulers[0].lr_lambdas[0]  # type: ignore[attr-defined]
    made.schedulers = [Schedule(optimizer, curve) for optimizer in optimizers]
    return made
