"""The sections about keeping a run steady: steps that go wrong, experts that nobody chooses."""

from dataclasses import dataclass


@dataclass
class Guard:
    """What happens when a step goes wrong: it is skipped, then the run goes back, then it ends."""

    skip_nan_inf: bool = True
    """Whether a step with a non-finite gradient is skipped, leaving weights, moments and schedule as they were."""

    spike_sigma: float = 0.0
    """
    Skip a step too whose loss or gradient norm lies this many standard deviations above the mean of the last
    `spike_window` steps, such as 6; 0 to let spikes pass.
    """

    spike_window: int = 128
    """Steps that a spike is measured against; judging begins when half of them are there."""

    rollback_after: int = 10
    """
    Skipped steps in a row after which model, optimizer and schedule go back to the last good checkpoint while the data
    go on, so that another stretch of them follows; 0 to never go back.
    """

    rollback_lr_factor: float = 0.5
    """What every learning rate is multiplied by from each such return on."""

    max_rollbacks: int = 3
    """Returns after which the run skips on to its end instead."""

    max_consecutive_skips: int = 50
    """Skipped steps in a row after which the run ends with an error."""


@dataclass
class Moe:
    """How the experts of a mixture are kept evenly loaded."""

    bias_update_rate: float = 1e-3
    """Step of the experts' selection bias after each optimizer step, in families that have one; 0 to leave it."""

    sequence_balance_loss: float = 0.0
    """Weight of the balance loss of each sequence and layer, for every router; DeepSeek-V3 takes 1e-4."""
