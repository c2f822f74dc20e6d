"""The range of every number in a job."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flame.config.schema import pattern
from flame.errors import ConfigError


@dataclass(frozen=True)
class Bound:
    """A range: closed at both ends, unless ``low`` or ``high`` itself is out of it."""

    low: float
    high: float = float("inf")
    low_is_out: bool = False
    high_is_out: bool = False
    also: int | None = None
    """One value outside the range that has a meaning of its own, such as -1 for "all"."""

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the range."""
        above = value > self.low if self.low_is_out else value >= self.low
        below = value < self.high if self.high_is_out else value <= self.high
        return (above and below) or value == self.also

    def __str__(self) -> str:
        if self.high < float("inf"):
            text = f"in {'(' if self.low_is_out else '['}{self.low:g}, {self.high:g}{')' if self.high_is_out else ']'}"
        else:
            text = f"above {self.low:g}" if self.low_is_out else f"at least {self.low:g}"
        return text if self.also is None else f"{text}, or {self.also}"


_POSITIVE = Bound(0, low_is_out=True)
_COUNT = Bound(1)
_NOT_NEGATIVE = Bound(0)
_SHARE = Bound(0, 1)
_DECAY = Bound(0, 1, high_is_out=True)

BOUNDS: dict[str, Bound] = {
    "profiling.profile_freq": _COUNT,
    "profiling.profiler_active": _COUNT,
    "profiling.profiler_warmup": _NOT_NEGATIVE,
    "metrics.log_freq": _COUNT,
    "optimizer.lr": _POSITIVE,
    "optimizer.beta1": _DECAY,
    "optimizer.beta2": _DECAY,
    "optimizer.eps": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.matrix_lr": _POSITIVE,
    "optimizer.embedding_lr": _POSITIVE,
    "optimizer.head_lr": _POSITIVE,
    "optimizer.scalar_lr": _POSITIVE,
    "optimizer.embedding_weight_decay": _NOT_NEGATIVE,
    "optimizer.head_weight_decay": _NOT_NEGATIVE,
    "optimizer.scalar_weight_decay": _NOT_NEGATIVE,
    "optimizer.momentum": _DECAY,
    "optimizer.momentum_start": _DECAY,
    "optimizer.momentum_end": _DECAY,
    "optimizer.momentum_warmup_steps": _NOT_NEGATIVE,
    "optimizer.orthogonalization_steps": _COUNT,
    "lr_scheduler.warmup_steps": _NOT_NEGATIVE,
    "lr_scheduler.total_steps": _COUNT,
    "lr_scheduler.decay_ratio": _SHARE,
    "lr_scheduler.min_lr_factor": _SHARE,
    "training.local_batch_size": _NOT_NEGATIVE,
    "training.global_batch_size": Bound(1, also=-1),
    "training.gradient_accumulation_steps": _NOT_NEGATIVE,
    "training.seq_len": _COUNT,
    "training.context_len": _NOT_NEGATIVE,
    "training.max_norm": _POSITIVE,
    "training.steps": _NOT_NEGATIVE,
    "training.tokens_per_param": _NOT_NEGATIVE,
    "training.tokens": _NOT_NEGATIVE,
    "training.flops": _NOT_NEGATIVE,
    "training.gc_freq": _COUNT,
    "training.dataloader.num_workers": _NOT_NEGATIVE,
    "training.dataloader.prefetch_factor": _COUNT,
    "parallelism.data_parallel_replicate_degree": _COUNT,
    "parallelism.data_parallel_shard_degree": Bound(1, also=-1),
    "parallelism.tensor_parallel_degree": _COUNT,
    "parallelism.pipeline_parallel_degree": _COUNT,
    "parallelism.pipeline_parallel_first_stage_less_layers": _NOT_NEGATIVE,
    "parallelism.pipeline_parallel_last_stage_less_layers": _NOT_NEGATIVE,
    "parallelism.pipeline_parallel_layers_per_stage": _COUNT,
    "parallelism.pipeline_parallel_microbatch_size": _COUNT,
    "parallelism.context_parallel_degree": _COUNT,
    "parallelism.expert_parallel_degree": _COUNT,
    "parallelism.expert_tensor_parallel_degree": _COUNT,
    "checkpoint.interval": _COUNT,
    "checkpoint.keep_latest_k": _NOT_NEGATIVE,
    "checkpoint.load_step": Bound(0, also=-1),
    "activation_checkpoint.memory_budget": _SHARE,
    "comm.init_timeout_seconds": _COUNT,
    "comm.train_timeout_seconds": _COUNT,
    "comm.trace_buf_size": _NOT_NEGATIVE,
    "validation.local_batch_size": _NOT_NEGATIVE,
    "validation.freq": _COUNT,
    "validation.steps": Bound(1, also=-1),
    "validation.dataloader.num_workers": _NOT_NEGATIVE,
    "validation.dataloader.prefetch_factor": _COUNT,
    "validation.sources.*.weight": _POSITIVE,
    "debug.seed": Bound(0),
    "data.lanes_per_row": _COUNT,
    "data.max_document_bytes": _COUNT,
    "data.sources.*.weight": _NOT_NEGATIVE,
    "data.sources.*.epochs": _NOT_NEGATIVE,
    "data.stages.*.start": _COUNT,
    "export.interval": _NOT_NEGATIVE,
    "guard.spike_sigma": _NOT_NEGATIVE,
    "guard.spike_window": Bound(2),
    "guard.rollback_after": _NOT_NEGATIVE,
    "guard.rollback_lr_factor": Bound(0, 1, low_is_out=True),
    "guard.max_rollbacks": _NOT_NEGATIVE,
    "guard.max_consecutive_skips": _COUNT,
    "moe.bias_update_rate": _NOT_NEGATIVE,
    "moe.sequence_balance_loss": _NOT_NEGATIVE,
}
"""Key -> range. Keys that may be unset are free to be."""


def check_bounds(config: Any) -> None:
    """Refuses the first number that is out of its range.

    Raises:
        ConfigError: Names the key, its value and the range.
    """
    for name, value in _numbers(config, ""):
        bound = BOUNDS.get(pattern(name))
        if bound and not bound.holds(value):
            raise ConfigError(f"{name} = {value} must be {bound}.")


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Yields the dotted name and value of every number below ``value``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _numbers(entry, f"{name}.{index}")
    elif hasattr(value, "__dict__"):
        for field, inner in vars(value).items():
            yield from _numbers(inner, f"{name}.{field}" if name else field)
