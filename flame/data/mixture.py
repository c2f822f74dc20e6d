"""Which source a row comes from: a pure function of (seed, lane, row) and of what has ended in the lane."""

import functools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from flame.data.order import point

# 2^64 divided by the golden ratio, and by the plastic number: multiples of them fill [0, 2^64) evenly.
_GOLDEN = 0x9E3779B97F4A7C15
_PLASTIC = 0xC13FA9A902A6328F
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Mixture:
    """The shares of the sources, step by step.

    Rows walk a low-discrepancy sequence over rows and lanes instead of drawing at random, so the shares are right over
    few rows already. Where a source has ended, the others have its rows, each in proportion to its weight. If those
    that have a weight in this stage have all ended, the others have them by the weights before the first stage, or
    evenly.

    Attributes:
        weights: [sources], before the first stage; a weight that is 0 in every stage is never chosen.
        seed: The job's seed.
        stages: (first step, weights), in the order of their steps; steps are counted from 1.
        rows_per_step: Rows of a global batch.
        lanes_per_row: Lanes that take turns at a row of it.
        in_sequence: Whether a source begins where the one before it has ended, whatever the weights.
    """

    weights: tuple[float, ...]
    seed: int
    stages: tuple[tuple[int, tuple[float, ...]], ...] = ()
    rows_per_step: int = 1
    lanes_per_row: int = 1
    in_sequence: bool = False

    def choose(self, lane: int, row: int, ended: frozenset[int] = frozenset()) -> int | None:
        """Chooses the source of a lane's row.

        Args:
            lane: The lane.
            row: 0 for the lane's first row.
            ended: The sources that have nothing left in this lane.

        Returns:
            Its number, or None if there is none.
        """
        if self.in_sequence:
            return next((number for number in range(len(self.weights)) if number not in ended), None)
        if len(self.weights) == 1 and not self.stages:
            return None if ended or not self.weights[0] else 0
        bounds = _bounds(self.weights_at(self.step(lane, row)) if self.stages else self.weights, ended)
        if not bounds and self.stages:
            bounds = _bounds(self.weights, ended) or _bounds(self._even, ended)
        if not bounds:
            return None
        place = (point(self.seed) + row * _GOLDEN + lane * _PLASTIC) & _MASK
        return bisect_right(bounds, (place >> 11) / 2**53)

    @functools.cached_property
    def _even(self) -> tuple[float, ...]:
        """1 for every source that has a weight in some stage."""
        return tuple(
            float(any(weights)) for weights in zip(self.weights, *(own for _, own in self.stages), strict=True)
        )

    def step(self, lane: int, row: int) -> int:
        """The step, from 1, that a lane's row belongs to."""
        return row * self.lanes_per_row + lane // self.rows_per_step + 1

    def weights_at(self, step: int) -> tuple[float, ...]:
        """The weights that hold in a step."""
        held = self.weights
        for start, weights in self.stages:
            if step >= start:
                held = weights
        return held


@functools.lru_cache(maxsize=1024)
def _bounds(weights: Sequence[float], ended: frozenset[int]) -> tuple[float, ...]:
    """The upper bounds of the sources' shares of [0, 1); empty if no source is left."""
    sums = list(accumulate(0.0 if number in ended else weight for number, weight in enumerate(weights)))
    return tuple(bound / sums[-1] for bound in sums) if sums[-1] else ()
