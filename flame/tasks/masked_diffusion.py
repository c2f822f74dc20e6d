"""Masked diffusion: a model that sees both sides fills in tokens that were hidden at random (LLaDA, arXiv 2502.09992).

[task]
name = "masked_diffusion"
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flame.config import JobConfig, TaskOptions
from flame.data import TextEncoder
from flame.data.batch import Batch, Inputs
from flame.errors import ConfigError
from flame.losses import CHUNK_ELEMENTS, IGNORE_INDEX
from flame.models.documents import document_inputs, documents_are_isolated
from flame.models.masks import fit_mask_token, sees_both_sides
from flame.models.trial import trial_model
from flame.tasks.base import Task, scored
from flame.tokenizer.byte_lengths import token_bytes

log = logging.getLogger(__name__)

_UNIT = 2**24
"""Mask probabilities are whole multiples of 1 / _UNIT, so that they travel exactly: FSDP rounds floating inputs."""


@dataclass
class MaskedDiffusionOptions(TaskOptions):
    """The ``[task]`` table of ``masked_diffusion``."""

    name: str = "masked_diffusion"
    """The task to train."""

    eps: float = 1e-3
    """Least probability with which a token is hidden: p = (1 - eps) t + eps, t uniform over [0, 1] for each row."""

    random_length_share: float = 0.01
    """Share of steps whose rows are cut to a random length, so that the model learns to fill in short texts too."""


class MaskedDiffusion(Task):
    """The bound on the log-likelihood of a text: cross entropy of hidden tokens, each over its row's mask probability.

    The mean is over all tokens, hidden or not, as LLaDA's is over B * L. Targets are the tokens at the hidden positions
    themselves. A micro-batch has ``input_ids`` with masks in them, ``noise`` [B, T] (p * 2^24 where a token is hidden,
    0 elsewhere) and labels: the text, -100 where there is none. Where the model config has a ``block_length`` (block
    diffusion, arXiv 2503.09573), each block has a p of its own, and the text itself comes along as ``clean_ids``.
    """

    Options = MaskedDiffusionOptions
    objectives = ("masked_diffusion",)
    options: MaskedDiffusionOptions

    def __init__(self, options: TaskOptions, tokenizer: PreTrainedTokenizerFast, config: JobConfig) -> None:
        super().__init__(options, tokenizer, config)
        _check_options(self.options, config)
        self.documents = "position_ids"
        self.mask_token_id = -1
        self.block_length = 0
        self._token_bytes = token_bytes(tokenizer)

    def encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, add_bos=self.config.data.add_bos, add_eos=self.config.data.add_eos)

    def check(self, model_class: type[nn.Module], config: PreTrainedConfig, documents: str) -> None:
        """Finds the mask token, giving it a row of its own where it has none, and proves that attention has no
        direction and that packed documents stay apart."""
        assert issubclass(model_class, PreTrainedModel)
        self.documents = documents
        self.mask_token_id = fit_mask_token(config, self.tokenizer)
        self.block_length = getattr(config, "block_length", 0)
        _check_blocks(self.block_length, config, self.config)
        self._token_bytes = _extended(self._token_bytes, config.vocab_size)
        small = trial_model(model_class, config)
        if small is None:
            raise ConfigError(f"family '{config.model_type}' cannot be scaled down to prove that it sees both sides")
        if not sees_both_sides(small):
            raise ConfigError(
                f"family '{config.model_type}' is causal: no token sees those after it; use task.name = 'causal_lm'"
            )
        if self.config.training.varlen:
            if documents != "position_ids":  # the noise of a batch keeps its shape
                raise ConfigError(f"training.varlen: '{config.model_type}' wants {documents}; set it to false")
            if "flash" in (config._attn_implementation or ""):
                raise ConfigError(
                    f"training.varlen: flash attention takes no mask, which packed documents of '{config.model_type}' "
                    "need; set model.attn_implementation to 'flex_attention'"
                )
            if not documents_are_isolated(small, documents):
                raise ConfigError(
                    f"training.varlen: '{config.model_type}' lets packed documents see each other; set it to false"
                )

    def draw(self, generator: torch.Generator) -> dict[str, Any]:
        """The length that the rows of a step are cut to; 0 for all of it."""
        share, longest = self.options.random_length_share, self.config.training.seq_len
        if not share:
            return {}
        cut = torch.rand((), generator=generator) < share
        length = torch.randint(1, longest + 1, (), generator=generator)  # drawn in any case: the stream stays the same
        return {"cut_length": int(length) if cut else 0}

    def prepare(self, inputs: Inputs, labels: torch.Tensor, generator: torch.Generator) -> Batch:
        """Hides tokens; the labels become the text itself, which the loader gives shifted by one."""
        length = inputs.get("cut_length", 0) or labels.shape[1]
        ids, labels = inputs["input_ids"][:, :length], labels[:, :length]
        text = _is_text(ids, labels)
        time = torch.rand(len(ids), 1, generator=generator)
        if self.block_length:
            blocks = _block_indices(inputs, length, self.block_length)  # [B or 1, T]
            time = torch.rand(len(ids), length, generator=generator).gather(1, blocks.expand(len(ids), -1))
        chance = ((1 - self.options.eps) * time + self.options.eps).mul(_UNIT).round().long().clamp(1, _UNIT)
        drawn = torch.randint(0, _UNIT, ids.shape, generator=generator)
        hidden = (drawn < chance) & text
        held = {name: value[:, :length] for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        clean = _ended(ids, text, self.tokenizer.eos_token_id)
        held["input_ids"] = clean.masked_fill(hidden, inputs.get("mask_token_id", self.mask_token_id))
        if self.block_length:
            held["clean_ids"] = clean
        held["noise"] = chance * hidden
        return held, ids.masked_fill(~text, IGNORE_INDEX)

    def model_inputs(self, inputs: Inputs) -> Inputs:
        return document_inputs({name: value for name, value in inputs.items() if name != "noise"}, self.documents)

    def loss(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        weights = _weights(inputs, labels)
        return _weighted(outputs.logits.flatten(0, -2), labels.clamp(min=0).flatten(), weights.flatten())

    def loss_sum(self, model: Any, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """Logits are computed where a token is hidden only."""
        if isinstance(labels, FakeTensor):  # a rehearsal knows shapes only: at most this is needed
            return super().loss_sum(model, inputs, labels)
        weights = _weights(inputs, labels)
        hidden = weights > 0
        logits = model(**self.model_inputs(inputs), logits_to_keep=hidden).logits  # [N, V]
        return _weighted(logits, labels[hidden], weights[hidden])

    def work(self, inputs: Inputs) -> float:
        return _passes(self.block_length) * inputs["input_ids"].shape[1] / self.config.training.seq_len

    def mean_work(self, config: PreTrainedConfig) -> float:
        share = self.options.random_length_share
        return _passes(getattr(config, "block_length", 0)) * (1 - share / 2)  # lengths are cut to a half on average

    def sample(self, config: PreTrainedConfig, rows: int, length: int, generator: torch.Generator) -> Batch:
        inputs, labels = super().sample(config, rows, length, generator)
        # The small model's vocabulary may end before the mask of the job.
        return {**inputs, "mask_token_id": min(self.mask_token_id, config.get_text_config().vocab_size - 1)}, labels

    def counts(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self._token_bytes.device != labels.device:
            self._token_bytes = self._token_bytes.to(labels.device)
        return {"bytes": self._token_bytes[scored(labels)].sum()}

    def report(self, loss: float, valid: float, counts: Mapping[str, float]) -> dict[str, float]:
        """Upper bounds: perplexity, and bits per byte of the UTF-8 text."""
        figures = {"ppl": math.exp(min(loss, 700.0))}
        if counts["bytes"]:
            figures["bpb"] = loss * valid / (math.log(2) * counts["bytes"])
        return figures


def _check_options(options: MaskedDiffusionOptions, config: JobConfig) -> None:
    if not 0 < options.eps < 1:
        raise ConfigError(f"task.eps = {options.eps} is no share between 0 and 1; use 0.001")
    if not 0 <= options.random_length_share <= 1:
        raise ConfigError(f"task.random_length_share = {options.random_length_share} is no share; use 0.01, or 0")
    layout = config.parallelism
    if options.random_length_share and max(layout.pipeline_parallel_degree, layout.context_parallel_degree) > 1:
        raise ConfigError(
            f"task.random_length_share = {options.random_length_share}: pipeline and context parallelism need rows of "
            "one length; set it to 0"
        )


def _check_blocks(length: int, config: PreTrainedConfig, job: JobConfig) -> None:
    """Refuses what a row and its text side by side cannot be trained with."""
    if not length:
        return
    for name in ("pipeline_parallel_degree", "context_parallel_degree"):
        if (degree := getattr(job.parallelism, name)) > 1:
            raise ConfigError(f"parallelism.{name} = {degree}: block_length = {length} of the model needs 1")
    if "flash" in (config._attn_implementation or ""):
        raise ConfigError(
            f"block_length = {length}: flash attention takes no mask; set model.attn_implementation to 'flex_attention'"
        )


def _passes(block_length: int) -> int:
    """How often a row goes through the layers: with blocks, the text itself does too."""
    return 2 if block_length else 1


def _block_indices(inputs: Inputs, length: int, block: int) -> torch.Tensor:
    """Index in its row of the block each position belongs to, [B or 1, T]; documents begin with a new one."""
    positions = inputs.get("position_ids")
    positions = torch.arange(length).unsqueeze(0) if positions is None else positions[:, :length]
    first = positions % block == 0
    first[:, 0] = True
    return first.cumsum(1) - 1


def _is_text(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which positions [B, T] hold text: those with a label, and those that are the label of the one before."""
    given = labels != IGNORE_INDEX
    given[:, 1:] |= labels[:, :-1] == ids[:, 1:]
    return given


def _ended(ids: torch.Tensor, text: torch.Tensor, end: Any) -> torch.Tensor:
    """The ids with end-of-text tokens instead of whatever fills a row up behind its text."""
    if end is None:
        return ids
    return ids.masked_fill(~text.flip(1).cummax(1).values.flip(1), end)


def _weights(inputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """What the cross entropy of each position counts, [B, T]: 1 / p where a token is hidden and scored, 0 elsewhere."""
    hidden = (inputs["noise"] > 0) & (labels != IGNORE_INDEX)
    return torch.where(hidden, _UNIT / inputs["noise"].clamp(min=1), 0.0)


def _weighted(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of cross entropies, of logits [N, V]; float32 copies of these exist for some rows at a time."""
    rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    if len(logits) <= rows:
        return _weighted_rows(logits, targets, weights)
    chunks = zip(logits.split(rows), targets.split(rows), weights.split(rows), strict=True)
    losses: list[Any] = [checkpoint(_weighted_rows, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(losses).sum()


def _weighted_rows(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()


def _extended(byte_lengths: torch.Tensor, size: int) -> torch.Tensor:
    """Byte lengths for a vocabulary of ``size``; rows past the tokenizer's stand for no text."""
    return F.pad(byte_lengths, (0, max(0, size - len(byte_lengths))))


TASK = MaskedDiffusion
