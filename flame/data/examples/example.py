"""What an example is, and what turns the records of a source into examples."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from flame.data.sources.records import BadRow, DocumentSource

if TYPE_CHECKING:
    from flame.config import Source

IGNORE = -100
"""The label of what is not scored; also behind shorter rows of labels."""

Key = tuple[int, int, int]
"""(seed, source, ordinal): what decides everything that is drawn for an example."""

Arrays = tuple[dict[str, np.ndarray], np.ndarray]
"""Inputs by name and labels, all with one row per example."""


class Example(NamedTuple):
    """What a model reads and what it should say."""

    values: np.ndarray
    """float32 or int64 ``[steps, width]``."""
    labels: np.ndarray
    """``[labels]``: int64 ids, or float32 numbers."""


class ExampleSource(DocumentSource, Protocol):
    """Records with random access whose lengths are known without reading them."""

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """float64 ``[len(indices)]``: seconds of recordings, steps of series."""
        ...


class ExampleEncoder(Protocol):
    """What a task hands to the data room. Picklable, and its class importable, since worker processes use it: these
    should not have to import what opens sources, nor torch."""

    inputs_name: str
    """What the model calls the values of examples."""
    unit: str
    """What the lengths of its sources count: ``seconds`` or ``steps``."""
    fingerprint: str
    """Equal for encoders that make equal examples."""

    def open(self, source: "Source") -> ExampleSource:
        """Opens a source of the job.

        Raises:
            DataError: It cannot be read, or does not hold what the task needs.
        """
        ...

    def steps(self, lengths: np.ndarray, keys: Sequence[Key] | None) -> np.ndarray:
        """Steps of the examples that records of some lengths become, int64; with ``keys``, as they will be drawn."""
        ...

    def encode(self, record: dict[str, Any], key: Key | None, where: str) -> Example | BadRow:
        """Makes an example, altered at random by ``key``; without one, as it is."""
        ...

    def blank(self) -> Example:
        """An example of one step with nothing to be scored, where a rank has none."""
        ...


def collate(examples: Sequence[Example], inputs_name: str) -> Arrays:
    """Examples as one batch: inputs ``[B, T, width]`` and ``attention_mask`` int64 ``[B, T]``; labels ``[B, L]``,
    -100 behind shorter ones."""
    rows, longest = len(examples), max(len(example.values) for example in examples)
    first = examples[0]
    values = np.zeros((rows, longest, first.values.shape[1]), first.values.dtype)
    mask = np.zeros((rows, longest), np.int64)
    labels = np.full((rows, max(1, *(len(example.labels) for example in examples))), IGNORE, first.labels.dtype)
    for row, example in enumerate(examples):
        values[row, : len(example.values)] = example.values
        mask[row, : len(example.values)] = 1
        labels[row, : len(example.labels)] = example.labels
    return {inputs_name: values, "attention_mask": mask}, labels
