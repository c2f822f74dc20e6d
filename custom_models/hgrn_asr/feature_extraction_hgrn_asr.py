from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers.audio_utils import mel_filter_bank, window_function
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature

try:
    from scipy.fft import rfft  # takes an eighth of the time
except ImportError:
    from numpy.fft import rfft

_FLOOR = 1e-10
_EMPHASIS = 0.97
_BLOCK = 1024  # frames at a time, so that memory does not grow with the recording


class HgrnAsrFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel features as Kaldi computes them, without dither: frames lie wholly inside the recording.

    Args:
        feature_size: F, mel bands.
        sampling_rate: of what it is given, in Hz.
        frame_length: of a frame, in seconds.
        frame_shift: between the beginnings of two frames, in seconds.
        normalise: ``utterance``, ``global`` (by ``mean`` and ``std``) or ``none``.
        mean: [F], of the features of the training set.
        std: [F], their deviation.
        padding_value: of padding, behind shorter recordings of a batch.
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        frame_length: float = 0.025,
        frame_shift: float = 0.01,
        normalise: str = "utterance",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        padding_value: float = 0.0,
        **kwargs: Any,
    ):
        kwargs.pop("padding_side", None)
        super().__init__(feature_size, sampling_rate, padding_value, padding_side="right", **kwargs)
        self.frame_length, self.frame_shift, self.normalise = frame_length, frame_shift, normalise
        self.mean = None if mean is None else [float(value) for value in mean]
        self.std = None if std is None else [float(value) for value in std]

    @property
    def frame_samples(self) -> int:
        """Samples of a frame."""
        return round(self.frame_length * self.sampling_rate)

    @property
    def hop_length(self) -> int:
        """Samples between the beginnings of two frames."""
        return round(self.frame_shift * self.sampling_rate)

    def frames(self, samples: Any) -> Any:
        """How many frames so many samples have, a number or an array; at least one."""
        return np.maximum(1, 1 + (samples - self.frame_samples) // self.hop_length)

    def raw_features(self, waveform: np.ndarray) -> np.ndarray:
        """Log-mel energies before normalisation: float32 [samples] to float32 [T, F]."""
        size, hop = self.frame_samples, self.hop_length
        if len(waveform) < size:
            waveform = np.pad(waveform, (0, size - len(waveform)))
        frames = np.lib.stride_tricks.sliding_window_view(np.asarray(waveform, np.float32), size)[::hop]
        window, bank, length = self._analysis()
        parts = []
        for start in range(0, len(frames), _BLOCK):
            block = frames[start : start + _BLOCK] - frames[start : start + _BLOCK].mean(1, keepdims=True)
            block[:, 1:] -= _EMPHASIS * block[:, :-1]
            block[:, 0] *= 1 - _EMPHASIS
            spectrum: Any = rfft(block * window, length)
            power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)  # [frames, bins]
            parts.append(np.log(np.maximum(power @ bank, _FLOOR)))
        return np.concatenate(parts)

    def normalised(self, features: np.ndarray) -> np.ndarray:
        """Raw features [T, F] as the model wants them.

        Raises:
            ValueError: normalisation is global and no statistics are known.
        """
        if self.normalise == "none":
            return features
        if self.normalise == "utterance":
            return (features - features.mean(0)) / (features.std(0) + 1e-5)
        if self.mean is None or self.std is None:
            raise ValueError("normalise is 'global', but mean and std are not known: train, or give them")
        return (features - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [samples] to float32 [T, F], normalised."""
        return self.normalised(self.raw_features(waveform))

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: Any = True,
        return_tensors: Any = None,
        return_attention_mask: bool | None = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """One recording [samples], or a list of them, as ``input_features`` [B, T, F] and ``attention_mask`` [B, T].

        Raises:
            ValueError: another sampling rate, or samples that are not mono.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"sampling_rate {sampling_rate} must be {self.sampling_rate}: resample the recording")
        is_single = not isinstance(raw_speech, (list, tuple)) or np.ndim(raw_speech[0]) == 0
        recordings = [np.asarray(item, np.float32) for item in ([raw_speech] if is_single else raw_speech)]
        if any(item.ndim != 1 for item in recordings):
            raise ValueError("recordings must be mono: give arrays with one dimension")
        batch = BatchFeature({"input_features": [self.features(item) for item in recordings]})
        return self.pad(
            batch, padding=padding, return_tensors=return_tensors, return_attention_mask=return_attention_mask, **kwargs
        )

    def _analysis(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Window [samples], filters [bins, F] and the length of the transform; made once."""
        if "_made" not in self.__dict__:
            size = self.frame_samples
            length = 1 << (size - 1).bit_length()
            top = self.sampling_rate / 2
            bank = mel_filter_bank(
                length // 2 + 1,
                self.feature_size,
                20.0,
                top,
                self.sampling_rate,
                mel_scale="kaldi",
                triangularize_in_mel_space=True,
            )
            window = window_function(size, "hann", periodic=False) ** 0.85  # Kaldi's "povey" window
            self._made = window.astype(np.float32), bank.astype(np.float32), length
        return self._made

    def to_dict(self) -> dict[str, Any]:
        """What is written to ``preprocessor_config.json``."""
        values = super().to_dict()
        values.pop("_made", None)
        return values
