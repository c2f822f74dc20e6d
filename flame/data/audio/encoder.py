"""From recordings and transcripts to examples: altered sound, features, label ids."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from flame.data.audio.augment import add_noise, spec_augment, speed
from flame.data.audio.cache import FeatureCache
from flame.data.audio.decoding import AudioError
from flame.data.audio.normalise_text import normalise_transcript
from flame.data.encoder import tokenizer_fingerprint
from flame.data.examples.example import IGNORE, Example, ExampleSource, Key
from flame.data.examples.features import CarriedFeatures
from flame.data.sources.records import BadRow
from flame.errors import DataError

if TYPE_CHECKING:
    from flame.config import Source


@dataclass(frozen=True)
class Alterations:
    """What training draws for a recording; the defaults alter nothing.

    Attributes:
        speeds: Factors of speed, of which one is drawn.
        noise_share: Share of recordings that noise is added to.
        noise_snr: Least and greatest ratio of sound to noise, in dB.
        noise: Recordings of noise; None for white noise.
        time_masks: Stretches of time that are hidden.
        time_width: Most frames of one.
        frequency_masks: Ranges of frequencies that are hidden.
        frequency_width: Most bands of one.
    """

    speeds: tuple[float, ...] = ()
    noise_share: float = 0.0
    noise_snr: tuple[float, float] = (5.0, 30.0)
    noise: ExampleSource | None = None
    time_masks: int = 0
    time_width: int = 0
    frequency_masks: int = 0
    frequency_width: int = 0


@dataclass(frozen=True)
class Transcription:
    """How transcripts become labels.

    Attributes:
        tokenizer: Of characters or pieces of words.
        blank: The id that writes nothing.
        unknown: What becomes of characters that it does not know: ``skip`` leaves the recording out, ``drop`` the
            characters, ``keep`` predicts the unknown token, ``error`` ends the run.
        unknown_id: Of that token, or None.
        language: Whose rules normalise transcripts; empty to take them as they are.
    """

    tokenizer: Tokenizer
    blank: int
    unknown: str
    unknown_id: int | None
    language: str


class AudioEncoder:
    """An ``ExampleEncoder`` of recordings.

    Args:
        features: The family's feature extractor: ``sampling_rate``, ``frames``, ``raw_features`` and ``normalised``.
        inputs_name: What the model calls its input.
        output_steps: int64 [longest + 1]: steps of the model's output for so many frames; empty if it is not known yet.
        transcription: How transcripts become labels.
        alterations: What training draws.
        cache: Folder for features of unaltered recordings; empty for none.
    """

    unit = "seconds"

    def __init__(
        self,
        features: Any,
        inputs_name: str,
        output_steps: np.ndarray,
        transcription: Transcription,
        alterations: Alterations,
        cache: str = "",
    ):
        self.inputs_name = inputs_name
        self.features = CarriedFeatures(features)
        self._output_steps = output_steps
        self._transcription = transcription
        self._alterations = alterations
        # Not by statistics, which come later.
        analysis = (features.sampling_rate, features.frame_length, features.frame_shift, features.feature_size)
        folder = hashlib.blake2b(repr(analysis).encode(), digest_size=8).hexdigest()
        self._cache = FeatureCache(Path(cache) / folder) if cache else None
        how = (
            features.to_json_string(),
            transcription.language,
            transcription.unknown,
            repr(replace(alterations, noise=None)),
        )
        self.fingerprint = hashlib.blake2b(
            "\n".join((tokenizer_fingerprint(transcription.tokenizer), *how)).encode(), digest_size=16
        ).hexdigest()

    def open(self, source: "Source") -> ExampleSource:
        """Opens recordings with their transcripts."""
        from flame.data.audio.source import open_audio  # not in worker processes

        return open_audio(source)

    def steps(self, lengths: np.ndarray, keys: Sequence[Key] | None) -> np.ndarray:
        """Frames of recordings of some seconds, at the speeds that are drawn for them."""
        if keys is not None and self._alterations.speeds:
            lengths = lengths / np.array([self._speed(np.random.default_rng(key)) for key in keys])
        return self.features.frames((lengths * self.features.sampling_rate).round().astype(np.int64))

    def encode(self, record: dict[str, Any], key: Key | None, where: str) -> Example | BadRow:
        """Makes features and labels of a recording."""
        ids = self.labels(record["text"], where)
        if isinstance(ids, BadRow):
            return ids
        generator = None if key is None else np.random.default_rng(key)
        try:
            raw = self._raw(record["audio"], generator)
        except AudioError as error:
            return error.bad_row(where)
        if not np.isfinite(raw).all():
            return BadRow("not finite", where, "the recording holds NaN or infinite samples")
        if short := self._too_short(len(raw), ids):
            return BadRow("too short for its transcript", where, short)
        values = self.features.normalised(raw)
        if generator is not None:
            values = self._masked(values, generator)
        return Example(np.ascontiguousarray(values, np.float32), ids)

    def blank(self) -> Example:
        """One frame of silence."""
        return Example(np.zeros((1, self.features.feature_size), np.float32), np.full(1, IGNORE, np.int64))

    def labels(self, text: str, where: str) -> np.ndarray | BadRow:
        """The label ids of a transcript, int64 [L].

        Raises:
            DataError: It has unknown characters, and those end the run.
        """
        how = self._transcription
        text = normalise_transcript(text, how.language) if how.language else text
        ids = np.array(how.tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        if how.unknown_id is not None and (ids == how.unknown_id).any():
            if how.unknown == "drop":
                ids = ids[ids != how.unknown_id]
            elif how.unknown != "keep":
                unknown = {character for character in text if self._is_unknown(character)}
                bad = BadRow("unknown characters", where, f"{''.join(sorted(unknown))!r} in {text[:60]!r}")
                if how.unknown == "error":
                    raise DataError(f"{bad}: mend the transcript, or set task.unknown to 'skip', 'drop' or 'keep'")
                return bad
        ids = ids[ids != how.blank]
        return ids if len(ids) else BadRow("empty transcript", where)

    def _is_unknown(self, character: str) -> bool:
        how = self._transcription
        return how.unknown_id in how.tokenizer.encode(character, add_special_tokens=False).ids

    def _raw(self, recording: Any, generator: np.random.Generator | None) -> np.ndarray:
        """Features before normalisation [T, F]; those of unaltered recordings may come from the cache."""
        factor = 1.0 if generator is None else self._speed(generator)
        altered = self._alterations
        noisy = generator is not None and altered.noise_share > 0 and generator.random() < altered.noise_share
        if self._cache is not None and factor == 1.0 and not noisy:
            found = self._cache.get(recording.key)
            if found is None:
                found = self.features.raw_features(recording.load(self.features.sampling_rate))
                self._cache.put(recording.key, found)
            return found
        samples = recording.load(self.features.sampling_rate)
        if factor != 1.0:
            samples = speed(samples, self.features.sampling_rate, factor)
        if noisy:
            assert generator is not None
            samples = add_noise(samples, generator, generator.uniform(*altered.noise_snr), self._noise(generator))
        return self.features.raw_features(samples)

    def _speed(self, generator: np.random.Generator) -> float:
        """The first that is drawn for a recording: ``steps`` draws it too."""
        speeds = self._alterations.speeds
        return float(speeds[int(generator.integers(len(speeds)))]) if speeds else 1.0

    def _noise(self, generator: np.random.Generator) -> np.ndarray | None:
        source = self._alterations.noise
        if source is None:
            return None
        record = source.read([int(generator.integers(len(source)))])[0]
        return None if isinstance(record, BadRow) else record["audio"].load(self.features.sampling_rate)

    def _masked(self, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        altered = self._alterations
        if not (altered.time_masks or altered.frequency_masks):
            return values
        return spec_augment(
            values,
            generator,
            altered.time_masks,
            altered.time_width,
            altered.frequency_masks,
            altered.frequency_width,
            0.0,
        )

    def _too_short(self, frames: int, ids: np.ndarray) -> str:
        """Why no path through the output reads as the labels; empty if one does."""
        if frames >= len(self._output_steps):
            return ""  # it is left out or refused for its length anyway
        needed = len(ids) + int((ids[1:] == ids[:-1]).sum())
        given = int(self._output_steps[frames])
        return f"{given} steps for {len(ids)} labels, which need {needed}" if given < needed else ""
