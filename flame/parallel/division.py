"""Shares a model's layers out over pipeline stages, and stages over ranks, as a schedule wants them."""

from collections.abc import Sequence

from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    ScheduleDualPipeV,
    ScheduleZBVZeroBubble,
    get_schedule_class,
)

from flame.config import JobConfig
from flame.errors import ConfigError, closest
from flame.parallel.split import Anatomy

SCHEDULES = (
    "1F1B",
    "GPipe",
    "Interleaved1F1B",
    "LoopedBFS",
    "InterleavedZeroBubble",
    "ZBVZeroBubble",
    "DualPipeV",
)
"""Names ``parallelism.pipeline_parallel_schedule`` may have."""

_V_SHAPED = (ScheduleZBVZeroBubble, ScheduleDualPipeV)


def schedule_class(config: JobConfig) -> type:
    """torch's class of ``parallelism.pipeline_parallel_schedule``.

    Raises:
        ConfigError: no such schedule.
    """
    name = config.parallelism.pipeline_parallel_schedule
    if name.lower() not in map(str.lower, SCHEDULES):
        raise ConfigError(
            f"parallelism.pipeline_parallel_schedule = '{name}' must be one of {', '.join(SCHEDULES)}."
            f"{closest(name, SCHEDULES)}"
        )
    return get_schedule_class(name)


def stage_layers(config: JobConfig, count: int, found: Anatomy) -> list[range]:
    """The decoder layers of every stage of the whole pipeline.

    Args:
        config: the job.
        count: number of the model's layers.
        found: what runs where in the model.

    Raises:
        ConfigError: they cannot be divided as the job asks.
    """
    layout = config.parallelism
    ranks, several = layout.pipeline_parallel_degree, issubclass(schedule_class(config), PipelineScheduleMulti)
    first, last = (
        layout.pipeline_parallel_first_stage_less_layers,
        layout.pipeline_parallel_last_stage_less_layers,
    )
    if layout.module_fqns_per_model_part:
        stages = len(layout.module_fqns_per_model_part)
    elif layout.pipeline_parallel_layers_per_stage:
        stages = -(-(count + first + last) // layout.pipeline_parallel_layers_per_stage)
    else:
        stages = ranks * (2 if several else 1)
    v_shaped = issubclass(schedule_class(config), _V_SHAPED)
    if stages % ranks or (stages == ranks) == several or (v_shaped and stages != 2 * ranks):
        wanted = "two stages" if v_shaped else "at least two stages" if several else "one stage"
        raise ConfigError(
            f"parallelism: {stages} pipeline stages on {ranks} ranks do not go with schedule "
            f"'{layout.pipeline_parallel_schedule}', which wants {wanted} per rank; change "
            "pipeline_parallel_layers_per_stage or module_fqns_per_model_part"
        )
    if layout.module_fqns_per_model_part:
        return named_division(layout.module_fqns_per_model_part, count, found)
    return divide_layers(count, stages, first, last)


def stages_of_rank(config: JobConfig, rank: int, stages: int) -> list[int]:
    """Numbers of the stages that a pipeline rank holds; V-shaped schedules come back to the first rank."""
    ranks = config.parallelism.pipeline_parallel_degree
    if issubclass(schedule_class(config), _V_SHAPED):
        return [rank, 2 * ranks - 1 - rank]
    return list(range(rank, stages, ranks))


def divide_layers(count: int, stages: int, first_less: int, last_less: int) -> list[range]:
    """Shares ``count`` layers out over stages, at least one to each.

    Args:
        count: number of layers.
        stages: number of stages.
        first_less: layers that what comes before the layers counts for.
        last_less: layers that what comes after them counts for.

    Raises:
        ConfigError: there are fewer layers than stages.
    """
    if count < stages:
        raise ConfigError(
            f"{count} layers cannot be shared out over {stages} pipeline stages; lower "
            "parallelism.pipeline_parallel_degree, or take a schedule with fewer stages per rank"
        )
    sizes = [1] * stages
    for _ in range(count - stages):
        loads = list(sizes)
        loads[0] += first_less
        loads[-1] += last_less
        sizes[loads.index(min(loads))] += 1
    return _ranges(sizes)


def named_division(parts: Sequence[Sequence[str]], count: int, found: Anatomy) -> list[range]:
    """The division that ``parallelism.module_fqns_per_model_part`` spells out.

    Args:
        parts: for each stage the names of its modules; ``layers.3`` may stand for ``model.layers.3``.
        count: number of layers of the model.
        found: what runs where; modules around the layers may be named where they belong, and need not be.

    Raises:
        ConfigError: a layer is missing, doubled or out of order, or a module cannot be where it is named.
    """
    key = "parallelism.module_fqns_per_model_part"
    leaf = found.layers.rpartition(".")[2]
    sizes, expected = [], 0
    for index, names in enumerate(parts):
        sizes.append(0)
        for name in names:
            holder, _, number = name.rpartition(".")
            if number.isdigit() and holder in (leaf, found.layers):
                if int(number) != expected:
                    raise ConfigError(f"{key}: part {index} names {name} where layer {expected} is due")
                expected += 1
                sizes[-1] += 1
            elif not _belongs(name, index, len(parts), found):
                raise ConfigError(f"{key}: part {index} names '{name}', which cannot be there")
    if expected != count or not all(sizes):
        raise ConfigError(f"{key} names {expected} of {count} layers, {sizes} per part; give every part at least one")
    return _ranges(sizes)


def _belongs(name: str, index: int, count: int, found: Anatomy) -> bool:
    def named(group: tuple[str, ...]) -> bool:
        return any(full == name or full.rpartition(".")[2] == name for full in group)

    return (index == 0 and named(found.before)) or (index == count - 1 and named(found.after))


def _ranges(sizes: Sequence[int]) -> list[range]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
