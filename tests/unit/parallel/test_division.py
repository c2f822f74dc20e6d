import pytest

from flame.config import JobConfig
from flame.errors import ConfigError
from flame.parallel.division import divide_layers, named_division, stage_layers, stages_of_rank
from flame.parallel.split import Anatomy

FOUND = Anatomy("model.layers", ("model.embed_tokens",), ("lm_head", "model.norm"), 0)


def sizes(division: list[range]) -> list[int]:
    return [len(layers) for layers in division]


@pytest.mark.parametrize(
    "count, stages, first, last, expected",
    [
        (8, 2, 0, 0, [4, 4]),
        (5, 2, 1, 1, [3, 2]),
        (4, 4, 1, 1, [1, 1, 1, 1]),
        (32, 4, 1, 1, [8, 9, 8, 7]),
        (32, 4, 0, 4, [9, 9, 9, 5]),
        (3, 2, 9, 0, [1, 2]),
    ],
)
def test_the_ends_get_fewer_layers(count: int, stages: int, first: int, last: int, expected: list[int]) -> None:
    division = divide_layers(count, stages, first, last)
    assert sizes(division) == expected
    assert [number for layers in division for number in layers] == list(range(count))


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 layers cannot be shared out over 4 pipeline stages"):
        divide_layers(3, 4, 0, 0)


def job(schedule: str, ranks: int, **changes) -> JobConfig:
    config = JobConfig()
    config.parallelism.pipeline_parallel_schedule = schedule
    config.parallelism.pipeline_parallel_degree = ranks
    for name, value in changes.items():
        setattr(config.parallelism, name, value)
    return config


@pytest.mark.parametrize(
    "schedule, expected", [("1F1B", 2), ("GPipe", 2), ("Interleaved1F1B", 4), ("ZBVZeroBubble", 4), ("DualPipeV", 4)]
)
def test_a_schedule_has_its_number_of_stages(schedule: str, expected: int) -> None:
    assert len(stage_layers(job(schedule, 2), 8, FOUND)) == expected


def test_stages_of_a_size_make_as_many_as_are_needed() -> None:
    division = stage_layers(job("Interleaved1F1B", 2, pipeline_parallel_layers_per_stage=2), 10, FOUND)
    assert sizes(division) == [1, 2, 2, 2, 2, 1]


@pytest.mark.parametrize(
    "schedule, rank, expected",
    [("Interleaved1F1B", 1, [1, 3]), ("ZBVZeroBubble", 1, [1, 2]), ("ZBVZeroBubble", 0, [0, 3])],
)
def test_stages_lie_where_the_schedule_wants_them(schedule: str, rank: int, expected: list[int]) -> None:
    assert stages_of_rank(job(schedule, 2), rank, 4) == expected


def test_layers_can_be_named_with_and_without_their_holder() -> None:
    parts = [["embed_tokens", "model.layers.0"], ["layers.1", "layers.2", "norm", "model.norm", "lm_head"]]
    assert sizes(named_division(parts, 3, FOUND)) == [1, 2]
