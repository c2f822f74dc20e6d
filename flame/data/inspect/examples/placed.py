"""A job's examples as they come to training, each with what it was made of."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flame.data.examples.batches import Chosen
from flame.data.examples.example import IGNORE
from flame.data.examples.loader import ExampleLoader
from flame.data.examples.maker import MicroBatch


class PlacedExample(NamedTuple):
    """An example and where it comes from."""

    chosen: Chosen
    values: np.ndarray
    """``[steps, width]``, as the model reads them."""
    labels: np.ndarray
    """``[labels]``: int64 ids, or float32 numbers."""


class PlacedBatch(NamedTuple):
    """A micro-batch and its place in training."""

    step: int
    """Counted from 1."""
    number: int
    """Of the micro-batch in its step."""
    examples: list[PlacedExample]
    longest: int
    """Steps that every example is padded to."""


def placed_batches(loader: ExampleLoader) -> Iterator[PlacedBatch]:
    """Yields the micro-batches of all ranks, in the order of the global batches.

    Args:
        loader: Of one rank that acts for all.

    Raises:
        DataError: Where training would.
    """
    step, number, place = 0, 0, None
    for made in loader.micro_batches():
        if made.has_ended:
            return
        number = number + 1 if made.place == place else 0
        step += not number
        place = made.place
        yield _placed(made, step, number, loader.plan.encoder.inputs_name)


def _placed(made: MicroBatch, step: int, number: int, inputs_name: str) -> PlacedBatch:
    inputs, labels = made.arrays
    values, counts = inputs[inputs_name], inputs["attention_mask"].sum(1).tolist()
    examples = [
        PlacedExample(chosen, values[row, : counts[row]], labels[row][labels[row] != IGNORE])
        for row, chosen in enumerate(made.examples)
    ]
    return PlacedBatch(step, number, examples, values.shape[1])
