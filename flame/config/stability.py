"""The sections about keeping a run steady: steps that go wrong, experts that nobody chooses."""

from dataclasses import dataclass


@dataclass
class Guard:
    """What happens when a step goes wrong."""

    skip_nan_inf: bool = True
    """Whether a step with a non-finite gradient is skipped, leaving weights, moments and schedule as they were."""

    max_consecutive_skips: int = 50
    """Skipped steps in a row after which the run ends with an error."""


@dataclass
class Moe:
    """How the experts of a mixture are kept evenly loaded."""

    bias_update_rate: float = 1e-3
    """Step of the experts' selection bias after each optimizer step, in families that have one; 0 to leave it."""

    sequence_balance_loss: float = 0.0
    """Weight of the balance loss of each sequence and layer, for every router; DeepSeek-V3 takes 1e-4."""
