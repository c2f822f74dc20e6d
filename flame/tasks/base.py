"""The contract of a task: what a batch is, what the loss is, what is reported."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn as nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flame.config import JobConfig, TaskOptions
from flame.data.batch import Batch, Inputs, join_rows, rows_of
from flame.losses import IGNORE_INDEX


class Task:
    """Turns records into batches and outputs into a loss.

    A task is a class called ``TASK`` in ``flame/tasks/<name>.py``. Its ``Options`` are the keys of the job's ``[task]``
    table. Every loss is a SUM over labels other than -100; the trainer divides by their number, counted over all ranks
    and micro-batches.
    """

    Options: ClassVar[type[TaskOptions]] = TaskOptions
    head: ClassVar[str] = "causal_lm"
    """The head of the model family that this task trains."""
    objectives: ClassVar[tuple[str, ...]] = ("autoregressive",)
    """The objectives of families (``ModelPlugin.objective``) that this task trains."""
    try_it: ClassVar[str] = 'flame generate --model {model} --prompt "def "'
    """What to do with a finished model."""
    layouts: ClassVar[tuple[str, ...]] = ()
    """The layouts of records (``data.sources.N.layout``) that its encoder can be told of."""
    step: int = 0
    """The training step under way, for what changes over training."""
    features: Any = None
    """The family's feature extractor (``ModelPlugin.features``), for tasks whose records are not text; it is saved with
    the model."""

    def __init__(self, options: TaskOptions, tokenizer: PreTrainedTokenizerFast | None, config: JobConfig) -> None:
        self.options = options
        self._tokenizer = tokenizer
        self.config = config

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The job's tokenizer; tasks whose options say that they need none must not ask."""
        assert self._tokenizer is not None
        return self._tokenizer

    def encoder(self) -> Any:
        """What worker processes run, picklable: an ``Encoder`` (records in, token ids out), or an ``ExampleEncoder``,
        whose examples are batched as they are instead of being packed into rows."""
        raise NotImplementedError

    def extend(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
        """Gives the class that will be trained what the task needs besides: layers that predict further tokens, say.

        Called once per job, on the job's own subclass of the family's class, before any instance is made.
        """

    def check(self, model_class: type[nn.Module], config: PreTrainedConfig, documents: str) -> None:
        """Looks at a scaled-down model before training; raises ``ConfigError`` where the task cannot be right."""

    def draw(self, generator: torch.Generator) -> dict[str, Any]:
        """Draws what all rows of a step have alike (a depth, a length): plain values, not tensors.

        They join the inputs before ``prepare``. ``generator`` is seeded by (seed, step): the same for a resumed step,
        every rank, and any number of micro-batches. Validation draws nothing: its inputs are the loader's and those of
        ``variants``.
        """
        return {}

    def prepare(self, inputs: Inputs, labels: torch.Tensor, generator: torch.Generator) -> Batch:
        """Draws what rows need (noise) on the CPU, before labels are counted; tensors it adds are [B, T].

        The trainer calls it row by row, with a generator seeded by (seed, step, row of the global batch): the same for
        a resumed step and for any number of ranks.
        """
        return inputs, labels

    def prepare_rows(self, batch: Batch, generators: Iterable[torch.Generator]) -> Batch:
        """Prepares each row of a batch by a generator of its own."""
        rows = [
            self.prepare(*rows_of(batch, slice(row, row + 1)), generator) for row, generator in enumerate(generators)
        ]
        return join_rows(rows)

    def variants(self) -> Mapping[str, Mapping[str, Any]]:
        """What validation runs: inputs to add, by the name its figures get (``val_loss_<name>``; "" is plain)."""
        return {"": {}}

    def work(self, inputs: Inputs) -> float:
        """Training FLOPs of a micro-batch relative to what is counted for the family, where passes differ in depth."""
        return 1.0

    def mean_work(self, config: PreTrainedConfig) -> float:
        """What ``work`` comes to on average over a run with a model config; by it a budget of FLOPs becomes steps."""
        return 1.0

    def observed(self) -> dict[str, float]:
        """Figures of this rank's last micro-batch, to be shown with the next report."""
        return {}

    def examine(self, figures: Mapping[str, float]) -> list[str]:
        """Warnings, one line each, about a report of training or validation."""
        return []

    def loss(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The summed loss of a forward pass, a float32 scalar."""
        raise NotImplementedError

    def model_inputs(self, inputs: Inputs) -> Inputs:
        """The keyword arguments of the forward pass, from what the loader gives; every pipeline stage asks."""
        return inputs

    def loss_sum(self, model: Any, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """Runs the model and returns the summed loss; a task may fuse the two.

        Args:
            model: the model, or what stands for it on the last pipeline stage: callable by keyword, with ``config`` and
                ``get_output_embeddings``.
            inputs: of the loader, not yet through ``model_inputs``.
            labels: -100 where not scored.
        """
        return self.loss(model(**self.model_inputs(inputs)), labels, inputs)

    def sample(self, config: PreTrainedConfig, rows: int, length: int, generator: torch.Generator) -> Batch:
        """A random batch as the loader would give it, to try a small model with; some labels are not scored."""
        ids = torch.randint(3, config.get_text_config().vocab_size, (rows, length + 1), generator=generator)
        labels = ids[:, 1:].masked_fill(torch.rand(rows, length, generator=generator) < 0.2, IGNORE_INDEX)
        return {"input_ids": ids[:, :-1].contiguous()}, labels

    def scored(self, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """What the summed loss of a step is divided by, for one micro-batch: the number of scored labels."""
        return (labels != IGNORE_INDEX).sum()

    def positions(self, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """Positions of a micro-batch that the model reads, by which speed and length of a run are told."""
        return torch.tensor(labels.numel())

    def tally(self) -> dict[str, torch.Tensor]:
        """What the last evaluated micro-batch adds to the figures of a validation, tensors of any shape that are summed
        over micro-batches and ranks and then given to ``report`` and ``validated``."""
        return {}

    def validated(self, step: int, totals: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Shows on the first rank what a validation gave besides figures: examples in the log, pictures in a folder."""

    def told(self, labels: Sequence[float]) -> str:
        """What the labels of an example say, for people to read."""
        return " ".join(f"{label:g}" for label in labels)

    def counts(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is added up over micro-batches and ranks besides loss and labels, by name; each a scalar."""
        return {}

    def report(self, loss: float, valid: float, counts: Mapping[str, Any]) -> dict[str, float]:
        """The figures to show, from the mean loss, the number of scored labels and the summed ``counts``; in validation
        ``tally`` too."""
        return {}


def seeded(*numbers: int) -> torch.Generator:
    """A generator on the CPU whose seed is a hash of some integers, the same in every process."""
    return torch.Generator().manual_seed(hash(numbers) % 2**63)


def scored(labels: torch.Tensor) -> torch.Tensor:
    """The labels that count, flattened: all but -100."""
    return labels[labels != IGNORE_INDEX]
