"""Speech recognition: labels of a recording without knowing when they are said (CTC, Graves et al. 2006).

[task]
name = "ctc"
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flame.config import JobConfig, TaskOptions
from flame.config.corpora import AUDIO_FORMATS, Source
from flame.ctc.beam import BeamOptions, beam_search
from flame.ctc.greedy import greedy
from flame.ctc.ngram import read_arpa
from flame.ctc.rates import count_errors
from flame.data.audio.encoder import Alterations, AudioEncoder, Transcription
from flame.data.audio.source import open_audio
from flame.data.audio.statistics import fit_features
from flame.data.batch import Batch, Inputs
from flame.errors import ConfigError
from flame.losses import IGNORE_INDEX, ctc_sum
from flame.tasks.base import Task
from flame.tokenizer.pieces import pieces_of

log = logging.getLogger(__name__)


@dataclass
class CTCOptions(TaskOptions):
    """The ``[task]`` table of ``ctc``."""

    formats: ClassVar[tuple[str, ...]] = AUDIO_FORMATS

    name: str = "ctc"
    """The task to train."""

    steps_per_batch: int = 0
    """
    Most frames of a global batch, padding included, so that batches of short recordings have more of them, up to
    `training.global_batch_size`; 0 for that many in each.
    """

    language: str = "en"
    """Language whose rules normalise transcripts (case, punctuation, numbers in words); empty to leave them alone."""

    unknown: Literal["skip", "drop", "keep", "error"] = "skip"
    """
    Characters that the tokenizer does not know: leave the recording out, drop the characters, keep the unknown token as
    a label, or end the run.
    """

    speeds: list[float] = field(default_factory=list)
    """Factors of speed, of which one is drawn for every recording, such as [0.9, 1.0, 1.1]; empty for none."""

    noise_share: float = 0.0
    """Share of the recordings that noise is added to."""

    noise_snr: list[float] = field(default_factory=lambda: [5.0, 30.0])
    """Least and greatest ratio of sound to noise, in dB."""

    noise_path: str = ""
    """Folder or manifest of noise; empty for white noise."""

    time_masks: int = 0
    """Stretches of time that are hidden (SpecAugment)."""

    time_mask_frames: int = 40
    """Most frames of such a stretch."""

    frequency_masks: int = 0
    """Ranges of frequencies that are hidden (SpecAugment)."""

    frequency_mask_bands: int = 20
    """Most mel bands of such a range."""

    feature_cache: str = ""
    """Folder where features of unaltered recordings are kept; empty to compute them anew each time."""

    decoder: Literal["greedy", "beam"] = "greedy"
    """How validation reads transcripts: the best label of every step, or the best text by beam search."""

    beam_width: int = 16
    """Texts that beam search keeps."""

    language_model: str = ""
    """ARPA file with a word n-gram model for beam search; empty for none."""

    language_model_weight: float = 0.5
    """What its logarithms of probabilities count."""

    word_bonus: float = 0.0
    """Added for every word, against the model's preference for few."""

    examples: int = 3
    """Transcripts shown in the log of a validation."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise_share <= 1:
            raise ConfigError(f"task.noise_share = {self.noise_share:g} is no share between 0 and 1.")
        if len(self.noise_snr) != 2 or self.noise_snr[0] > self.noise_snr[1]:
            raise ConfigError(f"task.noise_snr = {self.noise_snr} must be two numbers, the lower one first.")
        if any(not 0.5 <= speed <= 2 for speed in self.speeds):
            raise ConfigError(f"task.speeds = {self.speeds} must lie between 0.5 and 2.")
        counts = ("time_masks", "time_mask_frames", "frequency_masks", "frequency_mask_bands", "examples")
        for name in (*counts, "steps_per_batch"):
            if getattr(self, name) < 0:
                raise ConfigError(f"task.{name} = {getattr(self, name)} must be at least 0.")
        if self.beam_width < 1:
            raise ConfigError(f"task.beam_width = {self.beam_width} must be at least 1.")
        if self.language_model and self.decoder != "beam":
            raise ConfigError("task.language_model has no effect without task.decoder = 'beam'.")
        if self.noise_path and not self.noise_share:
            raise ConfigError("task.noise_path has no effect with task.noise_share = 0; raise that.")


class CTC(Task):
    """The probability of a transcript, summed over all ways to spread its labels over the steps of the recording.

    The loss is a sum over recordings, divided by the frames of the step. Validation tells word and character error
    rates. A micro-batch has ``input_features`` [B, T, F], ``attention_mask`` [B, T] and labels [B, L].
    """

    Options = CTCOptions
    head = "ctc"
    objectives = ("ctc",)
    try_it = "flame transcribe --model {model} RECORDING.wav"
    options: CTCOptions

    def __init__(self, options: TaskOptions, tokenizer: PreTrainedTokenizerFast, config: JobConfig) -> None:
        super().__init__(options, tokenizer, config)
        if tokenizer.pad_token_id is None:
            raise ConfigError("the tokenizer has no padding token, which CTC takes for its blank: make it with one")
        if config.data.too_long == "cut":
            raise ConfigError("data.too_long = 'cut': a cut recording no longer fits its transcript; set it to 'skip'.")
        self._pieces: list[str] = []
        self._beam = self._beam_options()
        self._inputs_name = "input_features"
        self._output_steps = np.empty(0, np.int64)
        self._tally: dict[str, torch.Tensor] = {}
        self._shown: list[tuple[str, str]] = []

    def encoder(self) -> AudioEncoder:
        return self._encoder(self._alterations())

    def extend(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
        """Learns how many steps the model makes of frames, and the statistics of features where they are global."""
        self._inputs_name = model_class.main_input_name
        self._pieces = pieces_of(self.tokenizer, config.vocab_size)
        frames = torch.arange(self.config.training.seq_len + 1)
        # The method asks for nothing but the config.
        steps = model_class._get_feat_extract_output_lengths(SimpleNamespace(config=config), frames)  # type: ignore[attr-defined]
        self._output_steps = steps.numpy()
        fit_features(self.features, self.config, self._encoder(Alterations()))

    def scored(self, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """Frames of the recordings that have a transcript."""
        frames = inputs["attention_mask"].sum(1)
        return (frames * (labels != IGNORE_INDEX).any(1)).sum()

    def positions(self, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        return self.scored(inputs, labels)

    def counts(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"labels": (labels != IGNORE_INDEX).sum()}

    def loss(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        blank = int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]
        return ctc_sum(outputs.logits, labels, self._steps(inputs), blank)

    def loss_sum(self, model: Any, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        outputs = model(**self.model_inputs(inputs))
        if not torch.is_grad_enabled():
            self._read(outputs.logits, labels, self._steps(inputs))
        return self.loss(outputs, labels, inputs)

    def told(self, labels: Sequence[float]) -> str:
        return "".join(self._pieces[int(label)] for label in labels)

    def tally(self) -> dict[str, torch.Tensor]:
        return self._tally

    def report(self, loss: float, valid: float, counts: Mapping[str, Any]) -> dict[str, float]:
        """Loss per label, and in validation the error rates."""
        figures = {"loss_per_label": loss * valid / max(counts["labels"], 1.0)}
        if "words" in counts:
            figures["wer"] = counts["word_edits"] / max(counts["words"], 1.0)
            figures["cer"] = counts["character_edits"] / max(counts["characters"], 1.0)
        return figures

    def validated(self, step: int, totals: Mapping[str, torch.Tensor], folder: Path) -> None:
        for reference, hypothesis in self._shown:
            log.info("  said    %s", reference)
            log.info("  heard   %s", hypothesis)
        self._shown = []

    def sample(self, config: PreTrainedConfig, rows: int, length: int, generator: torch.Generator) -> Batch:
        features = torch.randn(rows, length, self.features.feature_size, generator=generator)
        labels = torch.randint(1, config.vocab_size, (rows, max(1, length // 16)), generator=generator)
        return {self._inputs_name: features, "attention_mask": torch.ones(rows, length, dtype=torch.long)}, labels

    def _encoder(self, alterations: Alterations) -> AudioEncoder:
        tokenizer = self.tokenizer
        transcription = Transcription(
            tokenizer.backend_tokenizer,
            int(tokenizer.pad_token_id),  # type: ignore[arg-type]
            self.options.unknown,
            None if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id),  # type: ignore[arg-type]
            self.options.language,
        )
        return AudioEncoder(
            self.features, self._inputs_name, self._output_steps, transcription, alterations, self.options.feature_cache
        )

    def _alterations(self) -> Alterations:
        options = self.options
        return Alterations(
            speeds=tuple(options.speeds),
            noise_share=options.noise_share,
            noise_snr=(options.noise_snr[0], options.noise_snr[1]),
            noise=open_audio(Source(path=options.noise_path), text_required=False) if options.noise_path else None,
            time_masks=options.time_masks,
            time_width=options.time_mask_frames,
            frequency_masks=options.frequency_masks,
            frequency_width=options.frequency_mask_bands,
        )

    def _beam_options(self) -> BeamOptions | None:
        options = self.options
        if options.decoder == "greedy":
            return None
        model = read_arpa(options.language_model) if options.language_model else None
        return BeamOptions(
            options.beam_width, model=model, weight=options.language_model_weight, bonus=options.word_bonus
        )

    def _steps(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Steps of the model's output for each row, [B]."""
        frames = inputs["attention_mask"].sum(1)
        return torch.from_numpy(self._output_steps).to(frames.device)[frames]

    def _read(self, logits: torch.Tensor, labels: torch.Tensor, steps: torch.Tensor) -> None:
        """Reads transcripts of a batch that is evaluated, and counts errors."""
        scores = logits.float().log_softmax(-1).cpu().numpy()
        references, hypotheses = [], []
        for row, wanted in enumerate(labels.tolist()):
            wanted = [label for label in wanted if label != IGNORE_INDEX]
            if wanted:
                references.append(self._text(wanted))
                hypotheses.append(self._text(self._decoded(scores[row, : int(steps[row])])))
        errors = count_errors(references, hypotheses)
        self._tally = {name: torch.tensor(float(value)) for name, value in errors._asdict().items()}
        wanted_more = self.options.examples - len(self._shown)
        self._shown += list(zip(references, hypotheses, strict=True))[: max(0, wanted_more)]

    def _decoded(self, scores: np.ndarray) -> list[int]:
        blank = int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]
        if self._beam is None:
            return greedy(scores, blank)
        return beam_search(scores, blank, self._pieces, self._beam)[0]

    def _text(self, labels: list[int]) -> str:
        return " ".join("".join(self._pieces[label] for label in labels).split())


TASK = CTC
