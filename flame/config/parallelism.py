"""The ``[parallelism]`` section of a job file: torchtitan's, with flame's defaults and fields.

Annotations stay real types here, because torchtitan and the parser read them: no postponed evaluation.
"""

# Fields narrow the types of torchtitan's.
# pyright: reportIncompatibleVariableOverride=false

from dataclasses import dataclass
from typing import Literal

from torchtitan.config import job_config as titan


@dataclass
class Parallelism(titan.Parallelism):
    """How the model, its batches and its sequences are spread over devices."""

    preflight: Literal["auto", "always", "off"] = "auto"
    """Whether a small model of the family first proves that tensor, pipeline, context or expert parallelism computes
    what one device does: `auto` once per layout and versions, `always`, or `off` to take the risk."""

    data_parallel_replicate_degree: int = 1
    """Copies of the model, each on devices of its own; with sharding: HSDP."""

    data_parallel_shard_degree: int = -1
    """Devices that share one copy of the weights (FSDP); -1 for all that the other degrees leave."""

    tensor_parallel_degree: int = 1
    """Devices that split every layer, by the plan of the family."""

    disable_loss_parallel: bool = False
    """Whether every device computes the loss over the whole vocabulary under tensor parallelism."""

    pipeline_parallel_degree: int = 1
    """Devices that hold different layers."""

    module_fqns_per_model_part: list[list[str]] | None = None
    """The layers of every pipeline stage by name, such as `[["layers.0"], ["layers.1", "layers.2"]]`; unset to share
    them out."""

    pipeline_parallel_first_stage_less_layers: int = 1
    """Layers that the embedding counts for when layers are shared out over stages."""

    pipeline_parallel_last_stage_less_layers: int = 1
    """Layers that the output head counts for when layers are shared out over stages."""

    pipeline_parallel_schedule: str = "1F1B"
    """Order of micro-batches: `1F1B` or `GPipe` (one stage per device); `Interleaved1F1B`, `LoopedBFS`,
    `InterleavedZeroBubble` (two or more); `ZBVZeroBubble`, `DualPipeV` (two, in a V)."""

    pipeline_parallel_microbatch_size: int = 1
    """Rows of a micro-batch; `training.local_batch_size` must be a multiple of it."""

    context_parallel_degree: int = 1
    """Devices that split every sequence."""

    context_parallel_load_balancer: str | None = "headtail"
    """`headtail` gives every device an early and a late piece of a sequence, so that all have the same
    work; `none` gives it one piece."""

    context_parallel_rotate_method: Literal["allgather", "alltoall"] = "allgather"
    """How attention sees whole sequences: keys and values are gathered, or heads are exchanged for positions."""

    expert_parallel_degree: int = 1
    """Devices that hold different experts, among those that shard and split a copy of the model."""
