"""Decisions that every rank must share: one rank's error is every rank's error, so that none is left waiting."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from flame.errors import CheckpointError

T = TypeVar("T")


def decided_by_first(decide: Callable[[], T]) -> T:
    """Returns on every rank what ``decide`` returns on rank 0.

    Raises:
        CheckpointError: ``decide`` raised it on rank 0.
    """
    outcome: list[T | CheckpointError | None] = [None]
    if dist.get_rank() == 0:
        outcome = [outcome_of(decide)]
    dist.broadcast_object_list(outcome, src=0)
    return _unwrap(outcome[0])  # pyright: ignore[reportReturnType]


def decided_by_all(decide: Callable[[], T]) -> list[T]:
    """Returns what ``decide`` returns on each rank, in order of rank.

    Raises:
        CheckpointError: ``decide`` raised it on some rank.
    """
    outcomes: list[T | CheckpointError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome_of(decide))
    return [_unwrap(outcome) for outcome in outcomes]  # pyright: ignore[reportReturnType]


def outcome_of(decide: Callable[[], T]) -> T | CheckpointError:
    """Returns the result of ``decide``, or the ``CheckpointError`` it raised."""
    try:
        return decide()
    except CheckpointError as error:
        return error


def _unwrap(outcome: T | CheckpointError) -> T:
    if isinstance(outcome, CheckpointError):
        raise outcome
    return outcome


def causes(error: CheckpointException) -> list[BaseException]:
    """Returns what went wrong on each rank that failed during a save or load of DCP."""
    return [cause for cause, _ in error.failures.values()]
