"""Keeps a training run alive through steps whose numbers are not finite, or far from those before."""

import logging
import math
import statistics
from collections import deque
from enum import Enum, auto
from typing import Any

from flame.config import Guard as GuardConfig
from flame.errors import FlameError

log = logging.getLogger(__name__)


class TrainingDiverged(FlameError):
    """Training cannot go on: its numbers are no longer finite."""


class Verdict(Enum):
    """What becomes of a step."""

    ACCEPT = auto()
    SKIP = auto()
    ROLL_BACK = auto()
    """Skip it, and go back to a checkpoint from before the steps skipped in a row."""


class Guard:
    """Decides whether a step may change the weights.

    Loss and gradient norm are sums over all ranks, so every rank comes to the same decision.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped = 0
        self.rollbacks = 0
        self._in_a_row = 0
        self._last_accepted = 0
        self._went_back_to: int | None = None
        # (loss, gradient norm) of the last accepted steps
        self._window: deque[tuple[float, float]] = deque(maxlen=config.spike_window)

    @property
    def rate_scale(self) -> float:
        """What the returns so far make of every learning rate."""
        return self.config.rollback_lr_factor**self.rollbacks

    def judge(self, step: int, loss: float, grad_norm: float) -> Verdict:
        """Decides about a step from its numbers.

        Args:
            step: the current step.
            loss: mean loss over all ranks.
            grad_norm: norm of all gradients before clipping.

        Raises:
            TrainingDiverged: skipping is off, or ``guard.max_consecutive_skips`` steps in a row went wrong.
        """
        found = f"step {step}: loss {loss}, gradient norm {grad_norm}"
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if not finite and not self.config.skip_nan_inf:
            raise TrainingDiverged(f"{found}; lower optimizer.lr, or set guard.skip_nan_inf to leave such steps out")
        if finite and not self._is_spike(loss, grad_norm):
            self._accept(step, loss, grad_norm)
            return Verdict.ACCEPT
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self.config.max_consecutive_skips:
            raise TrainingDiverged(
                f"{found}, {self._in_a_row} such steps in a row; lower optimizer.lr and resume from the last checkpoint"
            )
        why = "" if finite else "not finite, "
        log.warning(
            "%s: %sskipped; nothing has changed but the position in the data (%d so far)", found, why, self.skipped
        )
        due = self.config.rollback_after and self._in_a_row % self.config.rollback_after == 0
        return Verdict.ROLL_BACK if due and self.rollbacks < self.config.max_rollbacks else Verdict.SKIP

    def newest_usable(self) -> int:
        """The newest step that is worth going back to: none since the numbers went wrong, and none that was tried and
        led to no good step."""
        return self._last_accepted if self._went_back_to is None else self._went_back_to - 1

    def went_back(self, step: int) -> None:
        """Notes that the run goes on from ``step``."""
        self.rollbacks += 1
        self._in_a_row = 0
        self._went_back_to = step
        self._window.clear()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know to decide as this one would."""
        return {
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "in_a_row": self._in_a_row,
            "last_accepted": self._last_accepted,
            "went_back_to": self._went_back_to,
            "window": list(self._window),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.skipped, self.rollbacks = state["skipped"], state["rollbacks"]
        self._in_a_row, self._last_accepted = state["in_a_row"], state["last_accepted"]
        self._went_back_to = state["went_back_to"]
        self._window.clear()
        self._window.extend((loss, norm) for loss, norm in state["window"])

    def _accept(self, step: int, loss: float, grad_norm: float) -> None:
        self._in_a_row = 0
        self._last_accepted = step
        self._went_back_to = None
        if self.config.spike_sigma:
            self._window.append((loss, grad_norm))

    def _is_spike(self, loss: float, grad_norm: float) -> bool:
        """As OLMo-core does: beyond mean + sigma standard deviations, for the loss or the gradient norm."""
        if not self.config.spike_sigma or len(self._window) < (self.config.spike_window + 1) // 2:
            return False
        for value, seen in zip((loss, grad_norm), zip(*self._window, strict=True), strict=True):
            if value > statistics.fmean(seen) + self.config.spike_sigma * statistics.pstdev(seen):
                return True
        return False
