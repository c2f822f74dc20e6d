"""Which parallel layouts a job may ask for, as far as its config alone can tell."""

from flame.config.sections import JobConfig
from flame.errors import ConfigError

_ZERO_BUBBLE = ("zbvzerobubble", "interleavedzerobubble", "dualpipev")


def check_parallelism(config: JobConfig) -> None:
    """Refuses degrees and options that do not go together.

    Raises:
        ConfigError: The message names the keys, their values and the remedy.
    """
    _check_experts(config)
    _check_tensor(config)
    _check_context(config)
    _check_pipeline(config)


def data_parallel_degree(config: JobConfig, world_size: int) -> int:
    """Returns how many processes read batches of their own.

    Raises:
        ConfigError: The parallel degrees do not fit the number of processes.
    """
    layout = config.parallelism
    model = layout.tensor_parallel_degree * layout.pipeline_parallel_degree * layout.context_parallel_degree
    replicate, shard = layout.data_parallel_replicate_degree, layout.data_parallel_shard_degree
    fixed = model * replicate * (shard if shard > 0 else 1)
    if world_size % fixed or (shard > 0 and fixed != world_size):
        remedy = "start that many" if shard > 0 else "start a multiple of that"
        raise ConfigError(
            f"The parallel degrees multiply to {fixed} processes, but there are {world_size}: {remedy} with NGPU and "
            "NNODE, or change parallelism.data_parallel_replicate_degree and data_parallel_shard_degree (-1: the rest)."
        )
    inside = world_size // (layout.pipeline_parallel_degree * replicate)
    if inside % layout.expert_parallel_degree:
        raise ConfigError(
            f"parallelism.expert_parallel_degree = {layout.expert_parallel_degree} does not divide the {inside} "
            "processes that one copy of a pipeline stage is spread over (data_parallel_shard x context x tensor)."
        )
    return world_size // model


def check_microbatches(config: JobConfig) -> None:
    """Refuses batches that a pipeline cannot be filled with; to be called once batch sizes are known.

    Raises:
        ConfigError: The rows of a process are not whole micro-batches.
    """
    layout = config.parallelism
    if layout.pipeline_parallel_degree == 1:
        return
    size = layout.pipeline_parallel_microbatch_size
    sections = {"training": config.training} | ({"validation": config.validation} if config.validation.enable else {})
    for section, options in sections.items():
        rows = options.local_batch_size
        if rows % size:
            raise ConfigError(
                f"{section}.local_batch_size = {rows} is not a multiple of "
                f"parallelism.pipeline_parallel_microbatch_size = {size}; change one of them."
            )
        if layout.pipeline_parallel_schedule.lower() == "1f1b" and rows // size < layout.pipeline_parallel_degree:
            raise ConfigError(
                f"parallelism.pipeline_parallel_schedule = '1F1B' needs at least as many micro-batches as stages "
                f"({layout.pipeline_parallel_degree}), but {section}.local_batch_size = {rows} gives {rows // size}; "
                "raise it (training.global_batch_size), lower pipeline_parallel_microbatch_size, or use 'GPipe'."
            )


def _check_experts(config: JobConfig) -> None:
    layout = config.parallelism
    if layout.expert_tensor_parallel_degree != 1:
        raise ConfigError(
            f"parallelism.expert_tensor_parallel_degree = {layout.expert_tensor_parallel_degree} is not supported: "
            "experts are held whole; set it to 1."
        )
    if layout.expert_parallel_comm_backend != "standard":
        raise ConfigError(
            f"parallelism.expert_parallel_comm_backend = '{layout.expert_parallel_comm_backend}' is not supported; "
            "use 'standard'."
        )


def _check_tensor(config: JobConfig) -> None:
    layout = config.parallelism
    if layout.enable_async_tensor_parallel:
        raise ConfigError(
            "parallelism.enable_async_tensor_parallel = true has nothing to overlap: the families' plans end "
            "projections with an all-reduce, which torch.compile cannot hide; set it to false."
        )
    if layout.tensor_parallel_degree > 1 and config.model.converters:
        raise ConfigError(
            f"model.converters = {config.model.converters} does not go with parallelism.tensor_parallel_degree = "
            f"{layout.tensor_parallel_degree} yet; use one of them."
        )


def _check_context(config: JobConfig) -> None:
    layout, length = config.parallelism, config.training.seq_len
    degree, balancer = layout.context_parallel_degree, layout.context_parallel_load_balancer
    if degree == 1:
        return
    if balancer not in (None, "none", "headtail"):
        raise ConfigError(
            f"parallelism.context_parallel_load_balancer = '{balancer}' is not supported; use 'headtail' or 'none'."
        )
    heads = layout.context_parallel_rotate_method == "alltoall"
    pieces = degree * (2 if balancer == "headtail" and not heads else 1)
    if length % pieces:
        raise ConfigError(
            f"training.seq_len = {length} cannot be cut into {pieces} equal pieces for "
            f"parallelism.context_parallel_degree = {degree}; make it a multiple of {pieces}."
        )


def _check_pipeline(config: JobConfig) -> None:
    layout = config.parallelism
    if layout.pipeline_parallel_degree == 1:
        return
    if layout.pipeline_parallel_schedule_csv:
        raise ConfigError(
            f"parallelism.pipeline_parallel_schedule_csv = '{layout.pipeline_parallel_schedule_csv}' is not supported; "
            "remove it and name a pipeline_parallel_schedule."
        )
    overlaps = layout.pipeline_parallel_expert_parallel_overlap and layout.expert_parallel_degree > 1
    if overlaps and layout.pipeline_parallel_schedule.lower() == "dualpipev":
        raise ConfigError(
            "parallelism.pipeline_parallel_schedule = 'DualPipeV' does not overlap the traffic of experts here; set "
            "pipeline_parallel_expert_parallel_overlap = false."
        )
    if config.compile.enable and layout.pipeline_parallel_schedule.lower() in _ZERO_BUBBLE:
        raise ConfigError(
            f"parallelism.pipeline_parallel_schedule = '{layout.pipeline_parallel_schedule}' computes gradients of "
            "inputs and weights apart, which compiled layers cannot; set compile.enable = false, or use "
            "'Interleaved1F1B'."
        )
