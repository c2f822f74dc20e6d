"""The order does not depend on ranks, on what is read ahead, or on restarts, whatever the documents are like."""

import random
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from data_stand_ins import Dataloader, ListEncoder, ListSource, TokenSource

from flame.data import best_fit as best_fit_module
from flame.data.lane_states import merge_states
from flame.data.loader import Loader
from flame.data.mixture import Mixture
from flame.data.packers import RowShape
from flame.data.rows import RowPlan
from flame.data.sources.records import BadRow
from flame.errors import DataError

LANES, GLOBAL_BATCH, LENGTH = 12, 4, 32
PACKINGS = ["stream", "best_fit", "rows"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(best_fit_module, "BLOCK_TOKENS", 256)


def documents(seed, count, empty=0.0, longest=70):
    """Documents of their own tokens each, some of them empty."""
    rng, found, token = random.Random(seed), [], 1
    for _ in range(count):
        length = 0 if rng.random() < empty else rng.randrange(1, longest)
        found.append(list(range(token, token + length)))
        token += length
    return found


def make_plan(*sources, packing="stream", too_long="split", epochs=(None,), mixture=None, **changes):
    plan = RowPlan(
        sources=list(sources),
        encoder=ListEncoder(),
        epochs=list(epochs),
        mixture=mixture or Mixture((1.0,), 0, rows_per_step=GLOBAL_BATCH, lanes_per_row=LANES // GLOBAL_BATCH),
        shape=RowShape(LENGTH, 0, packing, too_long, True, 3),
        lanes=LANES,
        seed=0,
        shuffle=True,
        on_bad_row="skip",
        max_document_bytes=1 << 20,
        is_endless=True,
        mix="tokens",
    )
    return replace(plan, **changes)


def make_loaders(plan, world=1):
    share = GLOBAL_BATCH // world
    for rank in range(world):
        rows = range(rank * share, (rank + 1) * share)
        lanes = [turn * GLOBAL_BATCH + row for turn in range(LANES // GLOBAL_BATCH) for row in rows]
        yield Loader(plan, lanes, 1, Dataloader(num_workers=0))


def merged_state(loaders):
    states = [loader.state_dict() for loader in loaders]
    return {**states[0], "lanes": merge_states(state["lanes"] for state in states)}


def global_batches(plan, steps, world=1, state=None):
    """Ids and labels of global batches, and the state after them."""
    loaders = list(make_loaders(plan, world))
    for loader in loaders:
        loader.load_state_dict(state or {})
    iterators = [iter(loader) for loader in loaders]
    found = []
    for _ in range(steps):
        batches = [batch for iterator in iterators for batch in islice(iterator, GLOBAL_BATCH // world)]
        found.append(
            b"".join(inputs["input_ids"].numpy().tobytes() + labels.numpy().tobytes() for inputs, labels in batches)
        )
    return found, merged_state(loaders)


def restarted(plan, steps, every):
    found, state = [], None
    while len(found) < steps:
        got, state = global_batches(plan, min(every, steps - len(found)), state=state)
        found += got
    return found


KINDS = {
    "text, empty documents": lambda: ListSource(documents(1, 400, empty=0.3)),
    "token ids, empty documents": lambda: TokenSource(documents(1, 400, empty=0.3)),
    "holes": lambda: TokenSource(documents(2, 101), block=4),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_and_a_restart_at_every_step_change_nothing(packing, kind):
    plan, steps = make_plan(KINDS[kind](), packing=packing), 24
    expected, _ = global_batches(plan, steps)
    assert len(set(expected)) == steps
    for world in (2, 4):
        assert global_batches(plan, steps, world)[0] == expected
    assert restarted(plan, steps, 1) == expected


@pytest.mark.parametrize("packing", ["best_fit", "rows"])
def test_a_restart_amid_documents_that_are_left_out_changes_nothing(packing):
    source = TokenSource([list(range(1, 50)) if number % 8 else [number + 1] * 30 for number in range(400)])
    plan = make_plan(source, packing=packing, too_long="skip")
    expected, _ = global_batches(plan, 12)
    assert restarted(plan, 12, 1) == expected


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_restart_after_sources_have_ended_changes_nothing(packing):
    """Which of the others has a row of an ended source depends on what had ended when the row was made."""
    sources = [ListSource(documents(seed, 40 if seed in (0, 2) else 300)) for seed in range(4)]
    mixture = Mixture((0.4, 0.3, 0.2, 0.1), 0, rows_per_step=GLOBAL_BATCH, lanes_per_row=LANES // GLOBAL_BATCH)
    plan = make_plan(*sources, packing=packing, epochs=(1.0, None, 2.0, None), mixture=mixture)
    expected, _ = global_batches(plan, 60)
    for every in (1, 7):
        assert restarted(plan, 60, every) == expected


def steps_until_the_end(plan, state=None, world=1):
    """Global batches until one is blank on every rank, and the state of which that step was taken back."""
    loaders = list(make_loaders(plan, world))
    for loader in loaders:
        loader.load_state_dict(state or {})
    iterators = [iter(loader) for loader in loaders]
    found = []
    while True:
        step, blank = b"", True
        for loader, iterator in zip(loaders, iterators, strict=True):
            for inputs, labels in islice(iterator, GLOBAL_BATCH // world):
                step += inputs["input_ids"].numpy().tobytes() + labels.numpy().tobytes()
                blank = blank and loader.is_blank
        if blank:
            for loader in loaders:
                loader.take_back_step()
            return found, merged_state(loaders)
        found.append(step)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("packing", "length"), [("rows", 20), ("stream", LENGTH)])
def test_a_run_that_ended_goes_on_with_more_epochs_as_if_it_had_had_them(packing, length, world):
    """As many documents for every lane, and no row that the end of the data leaves unfilled."""
    source = ListSource([[number + 1] * length for number in range(4 * LANES)])
    short, long = (make_plan(source, packing=packing, epochs=(epochs,)) for epochs in (1.0, 3.0))
    first, state = steps_until_the_end(short, world=world)
    rest, _ = steps_until_the_end(long, state)
    whole, _ = steps_until_the_end(long)
    assert len(first) == 4 * LANES // GLOBAL_BATCH and len(whole) == 3 * len(first)
    differing = [step for step, (got, wanted) in enumerate(zip([*first, *rest], whole, strict=True)) if got != wanted]
    # In a stream, the label of a row's last token is the first of the next one: there was none in the last rows.
    assert differing == (list(range(len(first) - 3, len(first))) if packing == "stream" else [])


@pytest.mark.parametrize("packing", ["best_fit", "rows"])
def test_nothing_but_documents_that_are_left_out_is_an_error_and_not_a_hang(packing):
    plan = make_plan(TokenSource([[7] * 50] * 40), packing=packing, too_long="skip")
    with pytest.raises(DataError, match=r"longer than 32 tokens, and data.too_long = 'skip'.*raise training.seq_len"):
        next(iter(next(make_loaders(plan))))


def test_large_blocks_are_not_read_as_a_whole():
    source = TokenSource([[7] * 3000] * 12_000, block=1000)
    next(iter(next(make_loaders(make_plan(source)))))
    assert source.most_read < 1000


class MostlyBad(ListSource):
    """Of every four documents only the first can be used."""

    def read(self, indices):
        return [BadRow("bad", self.where(i)) if i % 4 else {"ids": self.documents[i]} for i in indices]


def test_a_rank_without_a_usable_document_goes_on_beside_the_others():
    plan = make_plan(MostlyBad([[7] * 9] * 48), epochs=(1.0,), shuffle=False)
    for endless in (True, False):
        loader = list(make_loaders(replace(plan, is_endless=endless), world=4))[1]
        assert all(not np.any(labels.numpy() != -100) for _, labels in islice(loader, 5))
        assert loader.skipped == {"bad": 12}
    with pytest.raises(DataError, match="no usable documents in the sources"):
        list(next(make_loaders(replace(plan, sources=[ListSource([[]] * 40)], is_endless=False))))


@pytest.mark.parametrize(("documents_", "packed"), [(10, {"documents": 10, "too long": 10, "cut": 0, "rows": 40})])
@pytest.mark.parametrize("packing", ["rows", "best_fit"])
def test_a_document_longer_than_a_row_is_counted_as_such_and_not_as_cut(documents_, packed, packing):
    source = ListSource([list(range(1, 101))] * documents_)
    plan = make_plan(source, packing=packing, epochs=(1.0,), is_endless=False, lanes=1)
    loader = Loader(plan, [0], 1, Dataloader(num_workers=0))
    list(loader)
    counts = {name: loader.packed.get(name, 0) for name in packed}
    assert counts == packed if packing == "rows" else counts["documents"] == counts["too long"] == 10


def test_epochs_too_few_for_one_document_give_one():
    for source in (ListSource([[7] * 9] * 20), TokenSource([[7] * 9] * 50, block=4)):
        loader = next(make_loaders(make_plan(source, epochs=(0.001,))))
        assert any((inputs["input_ids"] == 7).any() for inputs, _ in islice(loader, LANES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mixture=Mixture((1.0,), 0, rows_per_step=6, lanes_per_row=2)), "global_batch_size = 4, the job has 6"),
        (dict(seed=1), "debug.seed = 0, the job has 1"),
        (dict(shuffle=False), "data.shuffle = True, the job has False"),
    ],
)
def test_a_state_of_another_order_is_refused(change, message):
    plan = make_plan(ListSource([[7]] * 20))
    state = next(make_loaders(plan)).state_dict()
    with pytest.raises(DataError, match=f"{message}: keep it, or start the data over"):
        next(make_loaders(replace(plan, **change))).load_state_dict(state)


def test_another_tokenizer_and_other_limits_are_told(caplog):
    plan = make_plan(ListSource([[7]] * 20))
    state = next(make_loaders(plan)).state_dict()
    encoder = ListEncoder()
    encoder.fingerprint = "other"
    next(make_loaders(replace(plan, encoder=encoder, max_document_bytes=99))).load_state_dict(state)
    assert "the tokenizer changed" in caplog.text and "data.max_document_bytes changed" in caplog.text
