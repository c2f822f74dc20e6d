"""Next-token prediction by a model whose core is run a random number of times (arXiv 2502.05171).

[task]
name = "recurrent_depth"
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn as nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flame.config import JobConfig, TaskOptions
from flame.data.batch import Batch, Inputs
from flame.errors import ConfigError
from flame.losses import IGNORE_INDEX
from flame.models.depths import CAPPED, Steps, check_sampler, draw_steps
from flame.tasks.causal_lm import CausalLM, CausalLMOptions

_DRAWS = 2**14
_COLLAPSED = 0.9  # token correlation
_IGNORED = 1e-3  # of the loss
_GOLDFISH_CONTEXT = 13  # tokens (https://arxiv.org/abs/2406.10209)
_FACTOR = 6364136223846793005  # of Knuth's linear congruential generator


class RecurrentConfig(Protocol):
    """What the task reads of a family's config."""

    mean_recurrence: int
    mean_backprop_depth: int
    sampling_scheme: str
    injection_type: str

    def outer_flops(self, length: int) -> int:
        """FLOPs of a sequence's forward pass outside the core."""
        ...

    def core_flops(self, length: int) -> int:
        """FLOPs of one step of the core over a sequence."""
        ...


@dataclass
class RecurrentDepthOptions(CausalLMOptions):
    """The ``[task]`` table of ``recurrent_depth``."""

    name: str = "recurrent_depth"
    """The task to train."""

    sampler: str = ""
    """
    How the number of steps is drawn: poisson_lognormal_filling, poisson_lognormal_fill, poisson_lognormal,
    poisson_lognormal_bounded, poisson_fill, poisson_unbounded, poisson_bounded, negative_binomial, geometric, uniform,
    sobol, fixed, full, non_recurrent. Empty: the sampling_scheme of the model's config.
    """

    mean_recurrence: int = 0
    """Steps in the mean; 0: the model's."""

    backprop_depth: int = 0
    """Last steps that gradients run through; 0: the model's."""

    curriculum_steps: int = 0
    """Training steps over which both grow from one to their values; 0: they do not grow."""

    validation_depths: list[int] = field(default_factory=lambda: [1, 4, 8, 16, 32])
    """Numbers of steps whose loss validation reports, as val_loss_r1 and so on."""

    goldfish_every: int = 0
    """
    Leaves one of so many tokens out of the training loss, the same ones wherever the 13 tokens of the document before
    are the same, so that texts are not learnt by heart; 0: none.
    """


class RecurrentDepth(CausalLM):
    """Cross entropy of the next token after a random number of steps, with gradients through the last ones.

    A micro-batch has ``num_steps`` (all ranks draw the same) and ``state_seeds`` [B, T], of which the model makes the
    state that each position begins with.
    """

    Options = RecurrentDepthOptions
    objectives = ("recurrent_depth",)
    options: RecurrentDepthOptions

    def __init__(self, options: TaskOptions, tokenizer: PreTrainedTokenizerFast, config: JobConfig) -> None:
        super().__init__(options, tokenizer, config)
        _check_options(self.options)
        self.mean = self.options.mean_recurrence or 32
        self.last = self.options.backprop_depth or 8
        self.sampler = self.options.sampler or "poisson_lognormal_filling"
        self._flops: RecurrentConfig | None = None
        self._seen: dict[str, torch.Tensor] = {}
        self._steps = 0
        self._seed = config.debug.seed or 0

    def extend(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
        """Settles depths and sampler; the config gets what the job says, so that the exported model knows its mean."""
        super().extend(model_class, config)
        missing = [name for name in ("mean_recurrence", "core_flops", "outer_flops") if not hasattr(config, name)]
        if missing:
            raise ConfigError(
                f"family '{config.model_type}' has no core to run several times; use task.name = 'causal_lm'"
            )
        recurrent: Any = config
        self._flops = recurrent
        self.mean = recurrent.mean_recurrence = self.options.mean_recurrence or recurrent.mean_recurrence
        self.last = recurrent.mean_backprop_depth = self.options.backprop_depth or recurrent.mean_backprop_depth
        if self.options.sampler:
            recurrent.sampling_scheme = self.options.sampler.replace("_", "-")
        self.sampler = recurrent.sampling_scheme.replace("-", "_")
        check_sampler(self.sampler, "task.sampler" if self.options.sampler else "sampling_scheme of the model config")
        _check_depths(self.sampler, self.mean, self.last, self.options)

    def draw(self, generator: torch.Generator) -> dict[str, Any]:
        """``num_steps``: without a graph, with one."""
        mean, last = self.mean, self.last
        if self.options.curriculum_steps:
            share = min(self.step / self.options.curriculum_steps, 1.0)
            mean, last = max(math.ceil(share * mean), 1), max(math.ceil(share * last), 1)
        return {"num_steps": draw_steps(self.sampler, mean, last, self.step, self._seed, generator)}

    def prepare(self, inputs: Inputs, labels: torch.Tensor, generator: torch.Generator) -> Batch:
        """Draws a seed for every position, and leaves goldfish tokens out of the loss in training."""
        inputs, labels = super().prepare(inputs, labels, generator)
        seeds = torch.randint(-(2**62), 2**62, labels.shape, generator=generator)
        if self.options.goldfish_every and "num_steps" in inputs:  # validation draws none
            dropped = goldfish(inputs["input_ids"], self.options.goldfish_every, inputs.get("position_ids"))
            labels = labels.masked_fill(dropped, IGNORE_INDEX)
        return {**inputs, "state_seeds": seeds}, labels

    def variants(self) -> Mapping[str, Mapping[str, Any]]:
        """The mean depth, and each of ``validation_depths``."""
        depths = {f"r{depth}": {"num_steps": depth} for depth in self.options.validation_depths}
        return {"": {"num_steps": self.mean}, **depths}

    def work(self, inputs: Inputs) -> float:
        """Steps without a graph run once, all others and what is around the core count three times."""
        if self._flops is None or "num_steps" not in inputs:
            return 1.0
        return self._work(inputs["num_steps"], inputs["input_ids"].shape[1])

    def mean_work(self, config: PreTrainedConfig) -> float:
        """Of as many draws as give it to a percent; a curriculum's beginning is not taken off."""
        generator, length = torch.Generator().manual_seed(0), self.config.training.seq_len
        drawn = [draw_steps(self.sampler, self.mean, self.last, step, self._seed, generator) for step in range(_DRAWS)]
        return sum(self._work(steps, length) for steps in drawn) / _DRAWS

    def _work(self, steps: Steps, length: int) -> float:
        """Training FLOPs of a row of ``length`` tokens, of those of a mean depth with a graph throughout."""
        assert self._flops is not None
        outer, core = self._flops.outer_flops(length), self._flops.core_flops(length)
        no_grad, grad = steps if self._flops.injection_type != "none" else (0, sum(steps))
        return (3 * outer + (no_grad + 3 * grad) * core) / (3 * (outer + self._flops.mean_recurrence * core))

    def model_inputs(self, inputs: Inputs) -> Inputs:
        given = super().model_inputs(inputs)
        return {**given, "output_details": {"return_stats": True}} if torch.is_grad_enabled() else given

    def loss_sum(self, model: Any, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        hook = model.register_forward_hook(self._note)
        try:
            return super().loss_sum(model, inputs, labels)
        finally:
            hook.remove()
            if torch.is_grad_enabled() and "num_steps" in inputs:
                self._steps = sum(inputs["num_steps"])

    def _note(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if output.stats:
            self._seen = output.stats

    def observed(self) -> dict[str, float]:
        """``num_steps`` of the last micro-batch, and of its last states: ``token_correlation`` (1: all positions have
        the same), ``state_norm``, ``step_residual`` (how much the last step changed them)."""
        return {"num_steps": float(self._steps), **{name: value.item() for name, value in self._seen.items()}}

    def examine(self, figures: Mapping[str, float]) -> list[str]:
        """The two ways in which recurrent training fails."""
        alarms = []
        correlation = figures.get("token_correlation", 0.0)
        if correlation >= _COLLAPSED:
            alarms.append(
                f"all positions have nearly the same state (token_correlation {correlation:.2f}): the core collapsed; "
                "lower the learning rate, or use sandwich norms and the linear adapter"
            )
        depths = sorted(depth for depth in self.options.validation_depths if f"val_loss_r{depth}" in figures)
        if len(depths) > 1:
            first, last = (figures[f"val_loss_r{depth}"] for depth in (depths[0], depths[-1]))
            if first - last <= _IGNORED * abs(last):
                alarms.append(
                    f"{depths[-1]} steps predict no better than {depths[0]} (loss {last:.4f} and {first:.4f}): the "
                    "state is not used, or not yet"
                )
        return alarms


def goldfish(ids: torch.Tensor, every: int, positions: torch.Tensor | None = None) -> torch.Tensor:
    """The positions [B, T] whose label is left out: a hash of the 13 tokens up to them is 0 modulo ``every``.

    Where ``positions`` [B, T] restart another document begins; none whose 13 tokens are not of one document is left
    out, so that a document loses the same tokens whatever stands before it.
    """
    kept = torch.zeros_like(ids, dtype=torch.bool)
    if ids.shape[1] < _GOLDFISH_CONTEXT:
        return kept
    value: Any = 0
    for window in ids.unfold(1, _GOLDFISH_CONTEXT, 1).unbind(-1):
        value = (value + window + 1) * _FACTOR  # wraps
    kept[:, _GOLDFISH_CONTEXT - 1 :] = ((value >> 33) & 0x3FFFFFFF) % every == 0
    return kept if positions is None else kept & (positions >= _GOLDFISH_CONTEXT - 1)


def _check_depths(sampler: str, mean: int, last: int, options: RecurrentDepthOptions) -> None:
    """Refuses depths that a sampler would not heed."""
    if sampler == "non_recurrent" and (options.mean_recurrence or options.backprop_depth):
        raise ConfigError("task.sampler 'non_recurrent' runs one step; leave out mean_recurrence and backprop_depth")
    if sampler == "full" and options.mean_recurrence not in (0, last):
        raise ConfigError(
            f"task.mean_recurrence = {mean}: sampler 'full' draws up to twice backprop_depth = {last}; set that instead"
        )
    if sampler not in CAPPED and last > mean:
        raise ConfigError(
            f"the last {last} steps cannot have a graph where the mean is {mean}: sampler '{sampler}' would draw more; "
            f"set task.backprop_depth to at most {mean}, or task.sampler to one of {', '.join(CAPPED[:2])}"
        )


def _check_options(options: RecurrentDepthOptions) -> None:
    if options.sampler:
        check_sampler(options.sampler, "task.sampler")
    for name in ("mean_recurrence", "backprop_depth", "curriculum_steps", "goldfish_every"):
        if getattr(options, name) < 0:
            raise ConfigError(f"task.{name} = {getattr(options, name)} must not be negative")
    if options.goldfish_every == 1:
        raise ConfigError("task.goldfish_every = 1 would leave every token out; use 4, or 0 for none")
    if any(depth < 1 for depth in options.validation_depths):
        raise ConfigError(f"task.validation_depths {options.validation_depths}: a pass has at least one step")


TASK = RecurrentDepth
