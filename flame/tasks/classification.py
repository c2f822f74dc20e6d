"""Classes of time series, or numbers that go with them.

[task]
name = "classification"
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flame.config import JobConfig, TaskOptions
from flame.config.corpora import SERIES_FORMATS
from flame.confusion import draw_confusion, macro_f1
from flame.data.batch import Batch, Inputs
from flame.data.series.encoder import SeriesAlterations, SeriesEncoder
from flame.data.series.fit import fit_series
from flame.errors import ConfigError
from flame.losses import IGNORE_INDEX
from flame.tasks.base import Task

log = logging.getLogger(__name__)


@dataclass
class ClassificationOptions(TaskOptions):
    """The ``[task]`` table of ``classification``."""

    needs_tokenizer: ClassVar[bool] = False
    formats: ClassVar[tuple[str, ...]] = SERIES_FORMATS

    name: str = "classification"
    """The task to train."""

    steps_per_batch: int = 0
    """
    Most steps of a global batch, padding included, so that batches of short series have more of them, up to
    `training.global_batch_size`; 0 for that many in each.
    """

    regression: bool = False
    """Whether labels are numbers to predict instead of classes."""

    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""

    jitter: float = 0.0
    """Standard deviation of noise on every value in training, in deviations of the training set."""

    scale: float = 0.0
    """Standard deviation of the logarithm of a factor for the whole series in training."""

    shift: int = 0
    """Most steps that a series is moved by in training."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"task.label_smoothing = {self.label_smoothing:g} must be at least 0 and below 1.")
        if self.label_smoothing and self.regression:
            raise ConfigError("task.label_smoothing has no effect with task.regression = true; set it to 0.")
        for name in ("steps_per_batch", "jitter", "scale", "shift"):
            if getattr(self, name) < 0:
                raise ConfigError(f"task.{name} = {getattr(self, name):g} must be at least 0.")


class Classification(Task):
    """Cross entropy of the class of each series; or squared error, in variances of the training set's numbers.

    Validation tells accuracy and macro F1 and draws the confusion matrix; of numbers, the mean absolute and the root of
    the mean squared error, and R2. A micro-batch has ``input_values`` [B, T, C], ``attention_mask`` [B, T] and labels
    [B, 1].
    """

    Options = ClassificationOptions
    head = "sequence_classification"
    objectives = ("classification",)
    try_it = "flame classify --model {model} SERIES"
    options: ClassificationOptions

    def __init__(self, options: TaskOptions, tokenizer: PreTrainedTokenizerFast | None, config: JobConfig) -> None:
        super().__init__(options, tokenizer, config)
        self.classes: list[str] = []
        self._spread = (0.0, 1.0)  # mean and standard deviation of numbers to predict
        self._inputs_name = "input_values"
        self._tally: dict[str, torch.Tensor] = {}

    def encoder(self) -> SeriesEncoder:
        options = self.options
        alterations = SeriesAlterations(options.jitter, options.scale, options.shift)
        return SeriesEncoder(
            self.features, self._inputs_name, None if options.regression else self.classes, alterations
        )

    def extend(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
        """Learns classes and statistics of the training set, which the exported model keeps."""
        self._inputs_name = model_class.main_input_name
        fitted = fit_series(self.features, self.config, regression=self.options.regression)
        if self.options.regression:
            self._spread = fitted.spread
            config.num_labels, config.problem_type = 1, "regression"
            config.label_mean, config.label_std = self._spread
            return
        self.classes = fitted.classes
        config.problem_type = "single_label_classification"
        config.id2label = dict(enumerate(self.classes))
        config.label2id = {name: number for number, name in enumerate(self.classes)}

    def positions(self, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """Steps of the series that have a label."""
        return (inputs["attention_mask"].sum(1) * (labels != IGNORE_INDEX).any(1)).sum()

    def loss(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        logits, wanted = outputs.logits.float(), labels[:, 0]
        if self.options.regression:
            errors = (logits[:, 0] - wanted.float()) / self._spread[1]
            return (errors**2 * (wanted != IGNORE_INDEX)).sum()
        return F.cross_entropy(
            logits, wanted, reduction="sum", ignore_index=IGNORE_INDEX, label_smoothing=self.options.label_smoothing
        )

    def loss_sum(self, model: Any, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        outputs = model(**self.model_inputs(inputs))
        if not torch.is_grad_enabled():
            kept = labels[:, 0] != IGNORE_INDEX
            self._tally = self._measured(outputs.logits[kept].float(), labels[kept, 0])
        return self.loss(outputs, labels, inputs)

    def told(self, labels: Sequence[float]) -> str:
        return " ".join(self.classes[int(label)] if self.classes else f"{label:g}" for label in labels)

    def tally(self) -> dict[str, torch.Tensor]:
        return self._tally

    def report(self, loss: float, valid: float, counts: Mapping[str, Any]) -> dict[str, float]:
        """What validation measured; nothing of a training step."""
        if "confusion" in counts:
            confusion = counts["confusion"]
            return {
                "accuracy": float(confusion.diagonal().sum() / confusion.sum().clamp(min=1)),
                "macro_f1": macro_f1(confusion),
            }
        if "squares" in counts:
            count = max(valid, 1.0)
            spread = counts["target_squares"] - counts["targets"] ** 2 / count
            return {
                "mae": counts["absolute"] / count,
                "rmse": (counts["squares"] / count) ** 0.5,
                "r2": 1 - counts["squares"] / spread if spread > 0 else 0.0,
            }
        return {}

    def validated(self, step: int, totals: Mapping[str, torch.Tensor], folder: Path) -> None:
        if "confusion" in totals:
            draw_confusion(totals["confusion"], self.classes, folder / f"confusion-{step}.png")

    def sample(self, config: PreTrainedConfig, rows: int, length: int, generator: torch.Generator) -> Batch:
        values = torch.randn(rows, length, self.features.feature_size, generator=generator)
        labels = torch.randint(config.num_labels or 1, (rows, 1), generator=generator)
        return {self._inputs_name: values, "attention_mask": torch.ones(rows, length, dtype=torch.long)}, labels

    def _measured(self, logits: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is added up over a validation: [classes, classes] true by predicted, or sums of errors."""
        if not self.options.regression:
            count = logits.shape[1]
            pairs = wanted * count + logits.argmax(1)
            return {"confusion": torch.bincount(pairs, minlength=count * count).view(count, count)}
        errors, targets = logits[:, 0].double() - wanted.double(), wanted.double()
        return {
            "absolute": errors.abs().sum(),
            "squares": (errors**2).sum(),
            "targets": targets.sum(),
            "target_squares": (targets**2).sum(),
        }


TASK = Classification
