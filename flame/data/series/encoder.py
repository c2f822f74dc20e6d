"""From series and their labels to examples."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flame.data.examples.example import IGNORE, Example, ExampleSource, Key
from flame.data.examples.features import CarriedFeatures
from flame.data.sources.records import BadRow
from flame.errors import DataError

if TYPE_CHECKING:
    from flame.config import Source


@dataclass(frozen=True)
class SeriesAlterations:
    """What training draws for a series; the defaults alter nothing.

    Attributes:
        jitter: Standard deviation of noise on every value, after normalisation.
        scale: Standard deviation of the logarithm of a factor for the whole series, after normalisation.
        shift: Most steps that a series is moved by, its first or last values repeated.
    """

    jitter: float = 0.0
    scale: float = 0.0
    shift: int = 0


class SeriesEncoder:
    """An ``ExampleEncoder`` of series.

    Args:
        features: The family's feature extractor, whose ``features`` gives ``[T, width]``.
        inputs_name: What the model calls its input.
        classes: Names of the classes, whose numbers are the labels; None for numbers to predict.
        alterations: What training draws.
    """

    unit = "steps"

    def __init__(self, features: Any, inputs_name: str, classes: Sequence[str] | None, alterations: SeriesAlterations):
        self.inputs_name = inputs_name
        self.features = CarriedFeatures(features)
        self._numbers = None if classes is None else {name: number for number, name in enumerate(classes)}
        self._alterations = alterations
        how = f"{features.to_json_string()}\n{classes}\n{alterations}"
        self.fingerprint = hashlib.blake2b(how.encode(), digest_size=16).hexdigest()

    def open(self, source: "Source") -> ExampleSource:
        """Opens series with labels.

        Raises:
            DataError: The source cannot be read, has other channels than the model, or a class that it does not know.
        """
        from flame.data.series.open import open_series  # not in worker processes

        opened = open_series(source)
        if opened.channels != self.features.feature_size:
            raise DataError(
                f"'{source.path}' has {opened.channels} channels, the model {self.features.feature_size}: set "
                "num_channels of the model config"
            )
        if self._numbers is not None and opened.classes is not None:
            unknown = [name for name in opened.classes if name not in self._numbers]
            if unknown:
                raise DataError(f"'{source.path}' has the class '{unknown[0]}', which the training set does not have")
        if self._numbers is None:
            opened.take_as_numbers()
        if not opened.labelled:
            raise DataError(f"'{source.path}' has no labels: set label_column to the column that holds them")
        if (self._numbers is None) != (opened.classes is None):
            wanted, found = ("numbers", "classes") if self._numbers is None else ("classes", "numbers")
            raise DataError(f"'{source.path}' has {found} for labels where {wanted} are to be learnt: set label_column")
        return opened

    def steps(self, lengths: np.ndarray, keys: Sequence[Key] | None) -> np.ndarray:
        """Steps of the series."""
        return lengths.astype(np.int64)

    def encode(self, record: dict[str, Any], key: Key | None, where: str) -> Example | BadRow:
        """Makes values and label of a series."""
        label = record["label"]
        if label is None:
            return BadRow("no label", where)
        values = self.features.features(record["values"])
        if not len(values):
            return BadRow("no steps", where)
        if not np.isfinite(values).all():
            return BadRow("not finite", where, "a value is infinite; missing ones must be NaN")
        if key is not None:
            values = self._altered(values, np.random.default_rng(key))
        if self._numbers is None:
            number = np.float32(label)
            # Exactly -100 stands for what is not scored.
            number = np.nextafter(number, np.float32(0)) if number == IGNORE else number
            return Example(values, np.array([number], np.float32))
        return Example(values, np.array([self._numbers[str(label)]], np.int64))

    def blank(self) -> Example:
        """One step of nothing."""
        values = self.features.features(np.zeros((1, self.features.feature_size)))
        return Example(values, np.full(1, IGNORE, np.float32 if self._numbers is None else np.int64))

    def _altered(self, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        altered = self._alterations
        if altered.shift:
            by = int(generator.integers(-altered.shift, altered.shift + 1))
            values = values[np.clip(np.arange(len(values)) - by, 0, len(values) - 1)]
        if values.dtype == np.float32 and altered.scale:
            values = values * np.float32(np.exp(altered.scale * generator.standard_normal()))
        if values.dtype == np.float32 and altered.jitter:
            values = values + altered.jitter * generator.standard_normal(values.shape, np.float32)
        return values
