"""When a token may stop: what its state or its next-token distribution does from one step to the next."""

import torch
import torch.nn.functional as F

# Criterion -> the change below which a token stops; for argmax-stability the steps without a change.
THRESHOLDS = {
    "none": 0.0,
    "kl": 5e-4,
    "minp-kl": 1e-5,
    "entropy-diff": 1e-3,
    "argmax-stability": 5.0,
    "latent-diff": 0.03,
    "cosine": 1e-3,
}
_OF_STATES = ("latent-diff", "cosine")
_MIN_P = 0.1  # share of the likeliest token's probability below which ``minp-kl`` takes no notice of a token


class ExitRule:
    """Decides after each step which tokens have settled (arXiv 2502.05171, section 5.1).

    Args:
        criterion: ``kl`` and ``minp-kl``: divergence of two successive distributions, over all tokens or the likely
            ones; ``entropy-diff``: change of the entropy; ``argmax-stability``: checks in a row with the same likeliest
            token; ``latent-diff``: relative change of the state; ``cosine``: 1 minus the cosine of successive states.
        threshold: a value other than the criterion's own.
        min_steps: steps that every token runs.
        check_every: steps between two looks.

    Raises:
        ValueError: no such criterion, or steps below 1.
    """

    def __init__(self, criterion: str, threshold: float | None, min_steps: int, check_every: int) -> None:
        if criterion not in THRESHOLDS:
            raise ValueError(f"exit_criterion '{criterion}' is none of {', '.join(THRESHOLDS)}")
        if min_steps < 1 or check_every < 1:
            raise ValueError(f"min_steps {min_steps} and check_every {check_every} must be at least 1")
        self.criterion = criterion
        self.threshold = THRESHOLDS[criterion] if threshold is None else threshold
        self.min_steps, self.check_every = min_steps, check_every
        self._before: torch.Tensor | None = None  # state [B, Q, H] or log-probabilities [B, Q, V] of the last look
        self._stable = torch.zeros(())

    @property
    def exits(self) -> bool:
        """Whether tokens can stop at all."""
        return self.criterion != "none"

    @property
    def reads_logits(self) -> bool:
        """Whether ``settled`` needs the prediction of every step and not just its state."""
        return self.criterion not in _OF_STATES

    def looks(self, steps: int) -> bool:
        """Whether the rule looks after so many steps."""
        return steps % self.check_every == 0

    def settled(self, steps: int, seen: torch.Tensor) -> torch.Tensor:
        """Which tokens may stop, [B, Q].

        Args:
            steps: how many steps have run.
            seen: the logits [B, Q, V] if the rule reads them, else the state [B, Q, H].
        """
        now = seen.float().log_softmax(-1) if self.reads_logits else seen.float()
        before, self._before = self._before, now
        if before is None:
            self._stable = torch.zeros(now.shape[:2], device=now.device)
            return torch.zeros(now.shape[:2], dtype=torch.bool, device=now.device)
        done = self._compared(before, now)
        return done if steps >= self.min_steps else torch.zeros_like(done)

    def _compared(self, before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
        match self.criterion:
            case "kl":
                return _divergence(now, before) < self.threshold
            case "minp-kl":
                likely = now >= now.amax(-1, keepdim=True) + torch.tensor(_MIN_P).log()
                kept = [p.masked_fill(~likely, -torch.inf).log_softmax(-1) for p in (now, before)]
                return _divergence(*kept) < self.threshold
            case "entropy-diff":
                return (_entropy(now) - _entropy(before)).abs() < self.threshold
            case "argmax-stability":
                self._stable = (self._stable + 1) * (now.argmax(-1) == before.argmax(-1))
                return self._stable >= self.threshold
            case "latent-diff":
                return (now - before).norm(dim=-1) < self.threshold * now.norm(dim=-1)
            case _:
                return 1 - F.cosine_similarity(now, before, dim=-1) < self.threshold


def _divergence(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """KL(now || before) of log-probabilities [..., V]; a token that neither allows counts nothing."""
    return (now.exp() * (now - before).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)).sum(-1)


def _entropy(log_probabilities: torch.Tensor) -> torch.Tensor:
    return -(log_probabilities.exp() * log_probabilities).sum(-1)
