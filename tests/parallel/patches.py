"""Changes that a pool's ranks make to flame for one job; each is a context manager named in ``Pool.run(patch=...)``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.distributed.fsdp import FSDPModule

import flame.parallel.preflight
import flame.parallel.tensor
import flame.spec
from flame.errors import ConfigError
from flame.losses import IGNORE_INDEX
from flame.models.build import TitanMixin
from flame.parallel.context import ContextParallel
from flame.parallel.pipeline import Pipeline


def mask(labels: torch.Tensor, first_row: int) -> torch.Tensor:
    """Leaves rows of the global batch with very different numbers of labels; the first two rows have none.

    Args:
        labels: [B, T].
        first_row: the row of the global batch that ``labels[0]`` is.
    """
    labels = labels.clone()
    for index, row in enumerate(labels):
        position = first_row + index
        row[: len(row) if position < 2 else 3 * position] = IGNORE_INDEX
    return labels


class MaskedLoader:
    """The rank's loader with labels masked by their row in the global batch, whatever the number of ranks."""

    def __init__(self, loader: Any, first_row: int, rows: int, local_batch_size: int) -> None:
        self._loader, self._first_row, self._rows, self._batch = loader, first_row, rows, local_batch_size

    def __iter__(self) -> Iterator[Any]:
        for index, (inputs, labels) in enumerate(self._loader):
            yield inputs, mask(labels, self._first_row + index * self._batch % self._rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


@contextmanager
def masked_labels() -> Iterator[None]:
    """Masks labels with ``mask``."""
    make = flame.spec.train_loader

    def masked(config: Any, encoder: Any, dp_rank: int, dp_world_size: int) -> Any:
        rows = config.training.global_batch_size // dp_world_size
        loader = make(config, encoder, dp_rank, dp_world_size)
        return MaskedLoader(loader, dp_rank * rows, rows, config.training.local_batch_size)

    with mock.patch.object(flame.spec, "train_loader", masked):
        yield


@contextmanager
def averaged_gradients() -> Iterator[None]:
    """Lets FSDP divide gradients by the number of ranks, as it does unless it is told not to."""
    with masked_labels(), mock.patch.object(FSDPModule, "set_gradient_divide_factor", lambda module, factor: None):
        yield


@contextmanager
def initialised_in_place() -> Iterator[None]:
    """Initialises as upstream does: HuggingFace's own initialisation over storage that meta-init left empty."""

    def init(model: Any, buffer_device: Any = None) -> None:
        super(TitanMixin, model).init_weights()  # type: ignore[misc]

    with mock.patch.object(TitanMixin, "init_weights", init):
        yield


@contextmanager
def undivided_pipeline_loss() -> Iterator[None]:
    """Leaves the summed loss as it is in the schedule, as torchtitan/train.py:495 does."""
    with masked_labels(), mock.patch.object(Pipeline, "_loss", lambda pipeline, summed, target: summed):
        yield


@contextmanager
def untied_gradients() -> Iterator[None]:
    """Lets the two copies of a tied embedding keep their own gradients."""
    with masked_labels(), mock.patch.object(Pipeline, "finish_gradients", lambda pipeline: None):
        yield


@contextmanager
def twins_counted() -> Iterator[None]:
    """Counts the gradient of a tied embedding once per stage that holds it."""
    with masked_labels(), mock.patch.object(Pipeline, "twins", []):
        yield


@contextmanager
def local_positions() -> Iterator[None]:
    """Gives every part of a sequence the positions 0, 1, ..., as torchtitan's HuggingFace backend does."""
    shard = ContextParallel.shard

    def wrong(context: ContextParallel, inputs: Any, labels: torch.Tensor) -> Any:
        here, labels = shard(context, inputs, labels)
        length = labels.shape[1]
        here["position_ids"] = torch.arange(length).expand(len(labels), -1)
        return here, labels

    with masked_labels(), mock.patch.object(ContextParallel, "shard", wrong):
        yield


@contextmanager
def partial_gradients() -> Iterator[None]:
    """Leaves the gradients of norms that all heads share to each rank's own heads."""
    with masked_labels(), mock.patch.object(flame.parallel.tensor, "sum_gradients", lambda module, group: None):
        yield


@contextmanager
def failing_comparison() -> Iterator[None]:
    """Makes the preflight refuse whenever it compares."""

    def compare(trial: Any) -> float:
        raise ConfigError("compared")

    with mock.patch.object(flame.parallel.preflight, "compare", compare):
        yield
