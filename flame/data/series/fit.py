"""What a model of series takes over from its training set: classes, and statistics of values and of labels."""

import logging
from typing import Any, NamedTuple

import numpy as np

from flame.config import JobConfig
from flame.data.examples.known import known_classes, known_features, known_spread
from flame.data.series.open import open_series
from flame.data.series.statistics import series_statistics
from flame.errors import DataError

logger = logging.getLogger(__name__)


class Fitted(NamedTuple):
    """Of a training set."""

    classes: list[str]
    """Names of the classes, in the order of their numbers; empty of numbers to predict."""
    spread: tuple[float, float]
    """Mean and standard deviation of numbers to predict."""


def fit_series(features: Any, config: JobConfig, regression: bool) -> Fitted:
    """Looks at the training set; gives the feature extractor its statistics, unless it knows some.

    A run that goes on, and one that starts from an exported model, keep the classes and the statistics that the model
    was trained with.

    Args:
        features: The feature extractor; changed in place.
        config: The job.
        regression: Whether labels are numbers to predict.

    Raises:
        DataError: A source cannot be read, or has no labels, or some of the other kind.
    """
    opened = [open_series(source) for source in config.data.sources]
    known = known_features(config)
    features.mean, features.std = known.get("mean"), known.get("std")
    if features.mean is None:
        _check_channels(features, config, opened[0].channels)
        mean, std = series_statistics(opened[0])
        features.mean, features.std = mean.tolist(), std.tolist()
        logger.info("values are normalised by the mean and deviation of '%s'", config.data.sources[0].path)
    names: set[str] = set()
    numbers: list[float] = []
    for source, one in zip(config.data.sources, opened, strict=True):
        if not one.labelled:
            raise DataError(f"'{source.path}' has no labels: set label_column to the column that holds them")
        if regression:
            one.take_as_numbers()
        if (one.classes is None) != regression:
            found = "numbers" if one.classes is None else "classes"
            raise DataError(
                f"'{source.path}' has {found} for labels: set task.regression = {str(not regression).lower()}"
            )
        names |= set(one.classes or ())
        numbers += [] if one.targets is None else [float(value) for value in one.targets]
    if not regression:
        order = {name: at for one in opened for at, name in enumerate(one.classes or ())}
        return Fitted(known_classes(config) or sorted(names, key=lambda name: (order[name], name)), (0.0, 1.0))
    finite = np.array(numbers)[np.isfinite(numbers)]
    return Fitted([], known_spread(config) or (float(finite.mean()), float(finite.std()) or 1.0))


def _check_channels(features: Any, config: JobConfig, channels: int) -> None:
    if channels != features.feature_size:
        raise DataError(
            f"'{config.data.sources[0].path}' has {channels} channels, the model {features.feature_size}: set "
            "num_channels of the model config"
        )
