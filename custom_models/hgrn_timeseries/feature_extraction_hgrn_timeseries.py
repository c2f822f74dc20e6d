from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature

_SPREAD = 3.0  # deviations from the mean, in both directions, that levels divide


class HgrnTimeseriesFeatureExtractor(SequenceFeatureExtractor):
    """Series as the model wants them: normalised by the training set's statistics, missing values filled.

    Args:
        feature_size: C, channels.
        mean: [C] of the training set; None for 0.
        std: [C] of the training set; None for 1.
        missing_indicator: whether C more channels say which values are missing.
        levels: if above 0, values are rounded to so many levels from 3 deviations below the mean to 3 above; missing
            ones have the last level.
        padding_value: of padding, behind shorter series of a batch.
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        missing_indicator: bool = False,
        levels: int = 0,
        padding_value: float = 0.0,
        **kwargs: Any,
    ):
        for name in ("padding_side", "sampling_rate"):
            kwargs.pop(name, None)
        super().__init__(feature_size, sampling_rate=1, padding_value=padding_value, padding_side="right", **kwargs)
        self.mean = None if mean is None else [float(value) for value in mean]
        self.std = None if std is None else [float(value) for value in std]
        self.missing_indicator, self.levels = missing_indicator, levels

    def features(self, values: Any) -> np.ndarray:
        """A series [T] or [T, C], NaN where a value is missing, as float32 [T, C or 2 C], or int64 [T, C] of levels.

        Raises:
            ValueError: another number of channels.
        """
        # In float64 first: large numbers with small differences are common.
        series = np.asarray(values, np.float64)
        series = series[:, None] if series.ndim == 1 else series
        if series.ndim != 2 or series.shape[1] != self.feature_size:
            raise ValueError(f"a series of shape {series.shape} must be [steps, {self.feature_size}]")
        mean = 0.0 if self.mean is None else np.array(self.mean)
        std = 1.0 if self.std is None else np.array(self.std)
        scaled = (series - mean) / std
        missing = np.isnan(scaled)
        if self.levels:
            top = self.levels - 2  # the last level is for what is missing
            places = np.round((np.nan_to_num(scaled).clip(-_SPREAD, _SPREAD) + _SPREAD) / (2 * _SPREAD) * top)
            return np.where(missing, self.levels - 1, places).astype(np.int64)
        filled = np.where(missing, 0.0, scaled)
        parts = [filled, missing] if self.missing_indicator else [filled]
        return np.concatenate(parts, 1).astype(np.float32)

    def __call__(
        self,
        series: Any,
        padding: Any = True,
        return_tensors: Any = None,
        return_attention_mask: bool | None = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """One series, or a list of them, as ``input_values`` [B, T, C] and ``attention_mask`` [B, T].

        A list of numbers is one series, and so is an array; several series are a list of arrays or lists.
        """
        is_single = not isinstance(series, (list, tuple)) or np.ndim(series[0]) == 0
        batch = BatchFeature({"input_values": [self.features(item) for item in ([series] if is_single else series)]})
        return self.pad(
            batch, padding=padding, return_tensors=return_tensors, return_attention_mask=return_attention_mask, **kwargs
        )
