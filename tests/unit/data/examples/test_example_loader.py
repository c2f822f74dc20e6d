"""The order of examples depends on job and seed alone, and a resumed run goes on in it."""

from collections import Counter
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from counting_examples import CountingEncoder

from flame.config import Data, Source
from flame.data.examples.build import build_example_loader
from flame.data.examples.loader import ExampleLoader
from flame.data.fingerprint import fingerprints
from flame.errors import DataError

WORKERS: dict[int, Any] = {
    number: SimpleNamespace(num_workers=number, prefetch_factor=None, pin_memory=False) for number in (0, 1, 3)
}


def loader(paths: str = "a:97", rank: int = 0, world: int = 1, workers: int = 0, **options: Any) -> ExampleLoader:
    data = Data(**{name: options.pop(name) for name in ("mix", "too_long", "on_bad_row", "shuffle") if name in options})
    weights, epochs = options.pop("weights", None), options.pop("epochs", 0.0)
    sources = [Source(path=path, epochs=epochs) for path in paths.split()]
    for source, weight in zip(sources, weights or [1.0] * len(sources), strict=True):
        source.weight = weight
    values: dict[str, Any] = {
        "longest": 100,
        "budget": 0,
        "global_batch_size": 8,
        "local_batch_size": 2,
        "seed": 3,
        "repeat": True,
        **options,
    }
    return build_example_loader(
        sources=sources,
        data=data,
        encoder=values.pop("encoder", CountingEncoder()),
        dp_rank=rank,
        dp_world_size=world,
        dataloader=WORKERS[workers],
        **values,
    )


def digests(count: int, world: int = 1, workers: int = 0, **options: Any) -> list[str]:
    loaders = [loader(rank=rank, world=world, workers=workers, **options) for rank in range(world)]
    try:
        return list(islice(fingerprints(loaders, 8 // (2 * world)), count))
    finally:
        for one in loaders:
            one.close()


def numbers(batch: Any) -> list[int]:
    return [int(row[0]) for row in batch[1] if row[0] >= 0]


@pytest.mark.parametrize("options", [{}, {"budget": 60}, {"paths": "a:30 b:50", "weights": [3.0, 1.0]}])
def test_batches_are_the_same_for_any_number_of_ranks_and_workers(options) -> None:
    alone = digests(40, **options)
    assert len(set(alone)) == 40
    assert digests(40, world=2, **options) == alone
    assert digests(40, world=4, **options) == alone
    assert digests(40, workers=1, **options) == alone
    assert digests(40, world=2, workers=3, **options) == alone


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("stop", [1, 7, 16, 33])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(stop, workers) -> None:
    steps, passes = 40, 4
    whole = [batch for batch, _ in zip(loader(budget=60), range(steps * passes), strict=False)]
    first = loader(budget=60, workers=workers)
    for _ in islice(first, stop * passes):
        pass
    state = first.state_dict()
    first.close()
    again = loader(budget=60, workers=workers)
    again.load_state_dict(state)
    rest = list(islice(again, (steps - stop) * passes))
    again.close()
    for (inputs, labels), (expected, expected_labels) in zip(rest, whole[stop * passes :], strict=True):
        assert torch.equal(inputs["input_values"], expected["input_values"])
        assert torch.equal(labels, expected_labels)


def test_a_state_fits_another_number_of_ranks() -> None:
    first = [loader(rank=rank, world=2) for rank in range(2)]
    list(islice(fingerprints(first, 2), 5))
    states = [one.state_dict() for one in first]
    assert states[0] == states[1]
    again = loader()
    again.load_state_dict(states[0])
    assert list(islice(fingerprints([again], 4), 10)) == digests(15)[5:]


def test_every_epoch_holds_every_example_once() -> None:
    read = [number for batch in islice(loader(paths="a:64"), 2 * 64 // 2) for number in numbers(batch)]
    assert sorted(read[:64]) != read[:64]
    assert Counter(read) == dict.fromkeys(range(64), 2)


def test_what_is_drawn_for_an_example_differs_from_epoch_to_epoch() -> None:
    drawn: dict[int, set[float]] = {}
    for inputs, labels in islice(loader(paths="a:16"), 2 * 16 // 2):  # two epochs
        for values, row in zip(inputs["input_values"], labels, strict=True):
            drawn.setdefault(int(row[0]), set()).add(float(values[0, 1]))
    assert all(len(values) == 2 for values in drawn.values())


def test_validation_gives_every_example_once_as_it_is_and_starts_over() -> None:
    held_out = loader(paths="a:21 b:4", repeat=False)
    for _ in range(2):
        batches = list(held_out)
        assert Counter(number for batch in batches for number in numbers(batch)) == Counter([*range(21), *range(4)])
        assert all((inputs["input_values"][..., 1] == 0).all() for inputs, _ in batches)


def test_no_batch_exceeds_the_budget_and_little_of_it_is_padding() -> None:
    found = loader(paths="a:4000", budget=120, global_batch_size=64, local_batch_size=64)
    sizes, steps = [], 0
    for inputs, _ in islice(found, 200):
        sizes.append(inputs["attention_mask"].numel())
        steps += int(inputs["attention_mask"].sum())
    assert max(sizes) <= 120
    assert steps / sum(sizes) > 0.9


def test_weights_are_shares_of_examples() -> None:
    found = loader(paths="a:50 b:1000", weights=[0.7, 0.3])
    letters = Counter(int(row[1]) for _, labels in islice(found, 4 * 250) for row in labels)
    assert letters[ord("a")] / letters.total() == pytest.approx(0.7, abs=0.01)


def test_a_source_that_has_had_its_epochs_ends_the_data() -> None:
    found = loader(paths="a:20", epochs=2.0)
    iterator, read = iter(found), []
    while True:
        batch = next(iterator)
        if found.is_blank:
            break
        read += numbers(batch)
    assert Counter(read) == dict.fromkeys(range(20), 2)
    assert not numbers(next(iterator))


def test_long_examples_are_left_out_and_counted_or_cut() -> None:
    without = loader(longest=10)
    assert max(inputs["attention_mask"].shape[1] for inputs, _ in islice(without, 40)) == 10
    assert without.skipped["longer than training.seq_len"] > 0
    cut = loader(longest=10, too_long="cut")
    assert len({number for batch in islice(cut, 200) for number in numbers(batch)}) == 97


def test_examples_that_cannot_be_read_are_left_out_and_counted_or_end_the_run() -> None:
    found = loader(paths="a:40:4")
    read = {number for batch in islice(found, 80) for number in numbers(batch)}
    assert read == {number for number in range(40) if number % 4}
    assert found.skipped == {"bad on purpose": found.skipped["bad on purpose"]}
    with pytest.raises(DataError, match="bad on purpose.*on_bad_row"):
        list(islice(loader(paths="a:40:4", on_bad_row="error"), 80))


@pytest.mark.parametrize("workers", [0, 3])
def test_sources_without_a_usable_example_are_an_error(workers) -> None:
    with pytest.raises(DataError, match="cannot be used"):
        list(islice(loader(paths="a:40:1", workers=workers), 1000))
    with pytest.raises(DataError, match=r"none of .* examples has at most training.seq_len = 0"):
        list(islice(loader(longest=0, workers=workers), 1000))


def test_a_state_of_other_batches_is_refused() -> None:
    state = loader().state_dict()
    with pytest.raises(DataError, match="debug.seed = 3, the job has 4"):
        loader(seed=4).load_state_dict(state)
    with pytest.raises(DataError, match="steps_per_batch"):
        loader(budget=60).load_state_dict(state)
    with pytest.raises(DataError, match="has 1 sources, the job has 2"):
        loader(paths="a:97 b:3").load_state_dict(state)
    with pytest.raises(DataError, match="task on text"):
        loader().load_state_dict({"layout": "{}", "lanes": b""})
