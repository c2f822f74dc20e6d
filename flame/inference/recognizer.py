"""Reads recordings aloud as text: whole models in overlapping segments, causal ones as they listen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

from flame.ctc.alignment import align
from flame.ctc.beam import BeamOptions, beam_search
from flame.ctc.greedy import Emission, emissions, words
from flame.data.audio.decoding import blocks
from flame.errors import ConfigError
from flame.inference.engine import family_of, find_device
from flame.inference.folder import load_part, load_weights
from flame.tokenizer.pieces import pieces_of

_BLOCK = 0.5  # seconds that a causal model hears at a time
_PAUSE = 12  # steps of blanks after which a word has ended, whether or not a space was said


class TimedWord(NamedTuple):
    """A word with the seconds at which it begins and ends."""

    text: str
    start: float
    stop: float


@dataclass
class Recognizer:
    """A model of speech that is ready to be used.

    Attributes:
        model: With a CTC head.
        features: Its feature extractor.
        pieces: What each label writes.
        blank: The label that writes nothing.
        beam: How far beam search looks; None for the best label of every step.
        segment: Seconds of a segment of a model that hears in both directions.
        overlap: Seconds that such a segment reaches into its neighbours on both sides.
    """

    model: Any
    features: Any
    pieces: list[str]
    blank: int
    beam: BeamOptions | None = None
    segment: float = 20.0
    overlap: float = 2.0

    @property
    def listens(self) -> bool:
        """Whether the model hears in one direction, so that it can go on where it was."""
        config = self.model.config
        return hasattr(self.model, "stream") and not config.bidirectional and not config.backbone

    @property
    def step_seconds(self) -> float:
        """Seconds of a step of the model's output."""
        return self.model.config.inputs_to_logits_ratio / self.features.sampling_rate

    def transcribe(self, path: str) -> Iterator[TimedWord]:
        """Yields the words of a recording of any length, each as soon as it is certain.

        Raises:
            AudioError: It cannot be read, or breaks off; what was read before has been given.
        """
        held, first = np.zeros((0, len(self.pieces)), np.float32), 0
        for scores in self._listen(path) if self.listens else self._segments(path):
            held = np.concatenate([held, scores])
            border = self._border(held)
            yield from self._words(held[:border], first)
            held, first = held[border:], first + border
        yield from self._words(held, first)

    def _words(self, scores: np.ndarray, first: int) -> Iterator[TimedWord]:
        for word in words(self._emissions(scores), self.pieces):
            yield TimedWord(
                word.text, (first + word.start) * self.step_seconds, (first + word.stop) * self.step_seconds
            )

    def _emissions(self, scores: np.ndarray) -> list[Emission]:
        if self.beam is None or not len(scores):
            return emissions(scores, self.blank)
        labels, _ = beam_search(scores, self.blank, self.pieces, self.beam)
        return align(scores, labels, self.blank)

    def _border(self, scores: np.ndarray) -> int:
        """Steps from the first that belong to words which have ended: up to the last space or long pause."""
        best = scores.argmax(1)
        # The first steps of labels: the others would be read as the label once more.
        firsts = np.flatnonzero(np.diff(best, prepend=-1))
        spaces = [int(step) for step in firsts if self.pieces[best[step]].startswith(" ")]
        said = np.flatnonzero(best != self.blank)
        pause = len(best) - (int(said[-1]) + 1 if len(said) else 0)
        if pause >= _PAUSE:
            return len(best) - pause // 2
        return spaces[-1] if spaces else 0

    def _listen(self, path: str) -> Iterator[np.ndarray]:
        """Logarithms of probabilities [T, V] of a causal model, block by block."""
        features, state = self.features, None
        size, hop, factor = features.frame_samples, features.hop_length, self.model.config.subsampling
        samples = np.zeros(0, np.float32)
        heard = False
        for block in blocks(path, features.sampling_rate, _BLOCK):
            samples = np.concatenate([samples, block])
            frames = (1 + (len(samples) - size) // hop) // factor * factor if len(samples) >= size else 0
            if frames > 0:
                scores, state = self._go_on(samples[: (frames - 1) * hop + size], state)
                samples, heard = samples[frames * hop :], True
                yield scores
        if len(samples) >= size or not heard:
            yield self._go_on(samples, state)[0]

    def _go_on(self, samples: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        values = torch.from_numpy(self.features.features(samples)).to(self.model.device)[None]
        with torch.no_grad():
            logits, state = self.model.stream(values, state)
        return logits[0].float().log_softmax(-1).cpu().numpy(), state

    def _segments(self, path: str) -> Iterator[np.ndarray]:
        """Logarithms of probabilities [T, V] of segments that are heard with what is around them."""
        rate, ratio = self.features.sampling_rate, self.model.config.inputs_to_logits_ratio
        length = max(1, round(self.segment * rate / ratio)) * ratio
        # At least what the last frame of a segment reaches beyond it.
        around = max(round(self.overlap * rate / ratio), -(-self.features.frame_samples // ratio)) * ratio
        samples, before = np.zeros(0, np.float32), 0  # of which ``before`` have been given
        for block in blocks(path, rate, self.segment):
            samples = np.concatenate([samples, block])
            while len(samples) >= before + length + around:
                yield self._heard(samples[: before + length + around], before // ratio, length // ratio)
                cut = max(0, before + length - around)
                samples, before = samples[cut:], before + length - cut
        if len(samples) > before:
            yield self._heard(samples, before // ratio, None)

    def _heard(self, samples: np.ndarray, first: int, count: int | None) -> np.ndarray:
        values = torch.from_numpy(self.features.features(samples)).to(self.model.device)[None]
        with torch.no_grad():
            logits = self.model(values).logits[0]
        kept = logits[first:] if count is None else logits[first : first + count]
        return kept.float().log_softmax(-1).cpu().numpy()


def load_recognizer(
    name: str, device: str = "", plugin_path: str = "", trust_remote_code: bool = False, **options: Any
) -> Recognizer:
    """Loads a model of speech; ``options`` are those of ``Recognizer``.

    Args:
        name: a HuggingFace folder or hub id.
        device: where to put it; the accelerator, if there is one, when empty.
        plugin_path: see ``load_plugin``.
        trust_remote_code: whether code in the folder may run; families flame knows need none.

    Raises:
        ConfigError: no model there, one that is not whole, or one that does not read recordings.
    """
    plugin = family_of(name, plugin_path, trust_remote_code)
    if plugin.objective != "ctc" and plugin.origin != "remote":
        raise ConfigError(f"--model '{name}' is of family '{plugin.model_type}', which does not transcribe recordings")
    place = find_device(device)
    model: Any = load_weights(AutoModelForCTC, name, trust_remote_code)
    tokenizer: Any = load_part(AutoTokenizer, name, trust_remote_code)
    features = load_part(AutoFeatureExtractor, name, trust_remote_code)
    pieces = pieces_of(tokenizer, model.config.vocab_size)
    return Recognizer(model.float().to(place).eval(), features, pieces, int(model.config.pad_token_id), **options)
