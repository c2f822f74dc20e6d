"""How often a recurrent model's core runs in a training step (arXiv 2502.05171, and the samplers of its code)."""

import math
from collections.abc import Callable

import torch

from flame.errors import ConfigError, closest

Steps = tuple[int, int]
"""How many steps of the core run without a graph, and how many with one after them."""

_SIGMA = 0.5  # of the logarithm of the mean


def draw_steps(sampler: str, mean: int, last: int, step: int, seed: int, generator: torch.Generator) -> Steps:
    """Draws the steps of the core.

    Args:
        sampler: a name that ``check_sampler`` knows.
        mean: steps in the mean.
        last: how many of them have a graph.
        step: of training; for ``sobol``, with the seed.
        seed: of the run.
        generator: of the draw.
    """
    if sampler == "sobol":
        return _sobol(max(mean - last, 0), last, step, seed)
    return SAMPLERS[sampler](mean, last, generator)


def check_sampler(name: str, key: str) -> None:
    """Refuses a sampler that does not exist; ``key`` is where it was named."""
    known = [*SAMPLERS, "sobol"]
    if name not in known:
        raise ConfigError(f"{key} '{name}' is none of {', '.join(known)}.{closest(name, known)}")


def _rate(mean: float, generator: torch.Generator) -> float:
    """A mean drawn from a log-normal distribution that has this mean itself."""
    return mean * math.exp(_SIGMA * torch.randn((), generator=generator).item() - _SIGMA**2 / 2)


def _poisson(rate: float, generator: torch.Generator) -> int:
    return int(torch.poisson(torch.tensor(float(rate)), generator=generator))


def _below(high: int, generator: torch.Generator) -> int:
    """Uniform among 0 ... high - 1; 0 if there is nothing to choose."""
    return int(torch.randint(max(high, 1), (), generator=generator))


def _filling(mean: int, last: int, generator: torch.Generator) -> Steps:
    total = _poisson(_rate(mean, generator), generator) + 1
    return max(total - last, 0), min(last, total)


def _negative_binomial(mean: int, generator: torch.Generator) -> int:
    """Variance 2 * mean: a Poisson distribution whose mean is a sum of ``mean`` exponential ones."""
    return _poisson(-(1 - torch.rand(mean, generator=generator)).log().sum().item(), generator) if mean else 0


def _geometric(mean: int, generator: torch.Generator) -> int:
    """From 1, with this mean; 0 if the mean is."""
    if mean <= 1:
        return mean
    drawn = math.log(1 - torch.rand((), generator=generator, dtype=torch.float64).item())
    return 1 + int(drawn / math.log(1 - 1 / mean))


def _then(
    before: Callable[[int, torch.Generator], int], fill: bool = False
) -> Callable[[int, int, torch.Generator], Steps]:
    """Draws the steps without a graph by their mean; those with one evenly up to twice their mean, unless ``fill``."""

    def sampler(mean: int, last: int, generator: torch.Generator) -> Steps:
        no_grad = before(max(mean - last, 0), generator)
        return no_grad, last if fill else 1 + _below(2 * last, generator)

    return sampler


def _sobol(before: int, last: int, index: int, seed: int) -> Steps:
    """Like ``uniform``, by a scrambled Sobol sequence over training steps."""
    engine = torch.quasirandom.SobolEngine(dimension=2, scramble=True, seed=seed)
    first, second = engine.fast_forward(index).draw(1)[0].tolist()
    return int(first * 2 * before), 1 + int(second * 2 * last)


SAMPLERS: dict[str, Callable[[int, int, torch.Generator], Steps]] = {
    "poisson_lognormal_filling": _filling,
    "poisson_lognormal_fill": _then(lambda mean, drawn: _poisson(_rate(mean, drawn), drawn), fill=True),
    "poisson_lognormal": _then(lambda mean, drawn: _poisson(_rate(mean, drawn), drawn)),
    "poisson_lognormal_bounded": _then(
        lambda mean, drawn: min(_poisson(_rate(mean, drawn), drawn), max(2 * mean - 1, 0))
    ),
    "poisson_fill": _then(_poisson, fill=True),
    "poisson_unbounded": _then(_poisson),
    "poisson_bounded": _then(lambda mean, drawn: min(_poisson(mean, drawn), max(2 * mean - 1, 0))),
    "negative_binomial": _then(_negative_binomial),
    "geometric": _then(_geometric),
    "uniform": _then(lambda mean, drawn: _below(2 * mean, drawn)),
    "fixed": lambda mean, last, _: (max(mean - last, 0), min(mean, last)),
    "full": lambda mean, last, drawn: (0, 1 + _below(2 * last, drawn)),
    "non_recurrent": lambda mean, last, _: (0, 1),
}
"""Name -> (mean, last steps with a graph, generator) -> steps without and with a graph; ``sobol`` goes by the step."""
CAPPED = ("poisson_lognormal_filling", "fixed", "full", "non_recurrent")
"""Samplers whose steps with a graph are cut where the mean, or what was drawn, is less."""
