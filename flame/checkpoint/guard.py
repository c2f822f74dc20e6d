"""Keeps a training run alive through steps whose numbers are not finite."""

import logging
import math

from flame.config import Guard as GuardConfig
from flame.errors import FlameError

log = logging.getLogger(__name__)


class TrainingDiverged(FlameError):
    """Training cannot go on: its numbers are no longer finite."""


class Guard:
    """Decides whether a step may change the weights.

    Loss and gradient norm are sums over all ranks, so every rank comes to the same decision.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped = 0
        self._in_a_row = 0

    def accepts(self, step: int, loss: float, grad_norm: float) -> bool:
        """True if the step's numbers are finite; otherwise the step is counted and to be left out.

        Args:
            step: the current step, for messages.
            loss: mean loss over all ranks.
            grad_norm: norm of all gradients before clipping.

        Raises:
            TrainingDiverged: skipping is off, or ``guard.max_consecutive_skips`` steps in a row were not finite.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._in_a_row = 0
            return True
        found = f"step {step}: loss {loss}, gradient norm {grad_norm}"
        if not self.config.skip_nan_inf:
            raise TrainingDiverged(f"{found}; lower optimizer.lr, or set guard.skip_nan_inf to leave such steps out")
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self.config.max_consecutive_skips:
            raise TrainingDiverged(
                f"{found}, {self._in_a_row} such steps in a row; lower optimizer.lr and resume from the last checkpoint"
            )
        log.warning("%s: skipped; weights, optimizer and schedule are as before (%d so far)", found, self.skipped)
        return False
