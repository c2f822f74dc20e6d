"""How far the tasks of a stage have come, told by worker processes to the one that shows it."""

from collections.abc import Sequence
from typing import Any

_slots: Any = None


def share(slots: Any) -> None:
    """Gives this process the memory it tells its progress through; without it, progress goes nowhere."""
    global _slots
    _slots = slots


def report(rank: int, fraction: float) -> None:
    """Says which fraction of its work a task has done."""
    if _slots is not None and rank < len(_slots):
        _slots[rank] = fraction


def total(slots: Sequence[float], tasks: int) -> float:
    """Adds up the fractions of the first ``tasks`` tasks."""
    return sum(slots[:tasks])
