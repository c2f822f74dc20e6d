"""Mean and deviation of the features of a training set, for models that normalise by them."""

import logging
from typing import Any

import numpy as np

from flame.config import JobConfig
from flame.data.audio.decoding import AudioError
from flame.data.examples.example import ExampleEncoder
from flame.data.examples.known import known_features
from flame.data.order import DocumentOrder
from flame.data.sources.records import BadRow
from flame.errors import DataError

logger = logging.getLogger(__name__)

_MOST = 500  # recordings that are looked at
_SMALLEST = 1e-3  # deviation of a band that is always silent


def fit_features(features: Any, config: JobConfig, encoder: ExampleEncoder) -> None:
    """Gives a feature extractor that normalises by the training set that set's statistics, unless it knows some.

    A run that goes on, and one that starts from an exported model, keep the statistics that the model was trained with.

    Args:
        features: The feature extractor; changed in place.
        config: The job.
        encoder: Opens its sources.

    Raises:
        DataError: Not one recording can be read.
    """
    if features.normalise != "global" or features.mean is not None:
        return
    known = known_features(config)
    features.mean, features.std = known.get("mean"), known.get("std")
    if features.mean is not None:
        return
    total, squares, frames = np.zeros(features.feature_size), np.zeros(features.feature_size), 0
    for number, source in enumerate(config.data.sources):
        opened = encoder.open(source)
        order = DocumentOrder(len(opened), config.debug.seed or 0, number)
        for record in opened.read(order.documents(np.arange(min(_MOST, len(opened)))).tolist()):
            try:
                if not isinstance(record, BadRow):
                    raw = features.raw_features(record["audio"].load(features.sampling_rate)).astype(np.float64)
                    total, squares, frames = total + raw.sum(0), squares + (raw**2).sum(0), frames + len(raw)
            except AudioError:
                continue  # the loader counts it, and says so
    if not frames:
        raise DataError(f"'{config.data.sources[0].path}' holds no recording that can be read: see `flame data show`")
    mean = total / frames
    features.mean = mean.tolist()
    features.std = np.sqrt((squares / frames - mean**2).clip(_SMALLEST**2)).tolist()
    logger.info("features are normalised by the mean and deviation of %s frames", f"{frames:,}")
