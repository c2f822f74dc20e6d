"""The contract of a task: what a batch is, what the loss is, what is reported."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn as nn
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from flame.config import JobConfig, TaskOptions
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

    def __init__(self, options: TaskOptions, tokenizer: PreTrainedTokenizerFast, config: JobConfig) -> None:
        self.options = options
        self.tokenizer = tokenizer
        self.config = config

    def encoder(self) -> Any:
        """The picklable ``Encoder`` that worker processes run: records in, token ids out."""
        raise NotImplementedError

    def check(self, model_class: type[nn.Module], config: PreTrainedConfig, documents: str) -> None:
        """Looks at a scaled-down model before training; raises ``ConfigError`` where the task cannot be right."""

    def prepare(
        self, inputs: dict[str, torch.Tensor], labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Draws what the step needs (noise, depth) on the CPU, before labels are counted.

        ``generator`` is seeded by (seed, step, first row): the same for a resumed step and for any number of ranks.
        """
        return inputs, labels

    def loss(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The summed loss of a forward pass, a float32 scalar."""
        raise NotImplementedError

    def model_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The keyword arguments of the forward pass, from what the loader gives; every pipeline stage asks."""
        return inputs

    def loss_sum(self, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Runs the model and returns the summed loss; a task may fuse the two.

        Args:
            model: the model, or what stands for it on the last pipeline stage: callable by keyword, with ``config`` and
                ``get_output_embeddings``.
            inputs: of the loader, not yet through ``model_inputs``.
            labels: -100 where not scored.
        """
        return self.loss(model(**self.model_inputs(inputs)), labels, inputs)

    def sample(
        self, config: PreTrainedConfig, rows: int, length: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """A random batch as the loader would give it, to try a small model with; some labels are not scored."""
        ids = torch.randint(3, config.get_text_config().vocab_size, (rows, length + 1), generator=generator)
        labels = ids[:, 1:].masked_fill(torch.rand(rows, length, generator=generator) < 0.2, IGNORE_INDEX)
        return {"input_ids": ids[:, :-1].contiguous()}, labels

    def counts(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is added up over micro-batches and ranks besides loss and labels, by name; each a scalar."""
        return {}

    def report(self, loss: float, valid: float, counts: Mapping[str, float]) -> dict[str, float]:
        """The figures to show, from the mean loss, the number of scored labels and the summed ``counts``."""
        return {}


def scored(labels: torch.Tensor) -> torch.Tensor:
    """The labels that count, flattened: all but -100."""
    return labels[labels != IGNORE_INDEX]
