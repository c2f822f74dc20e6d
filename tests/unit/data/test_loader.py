"""The data-order contract: global batches depend on the config and the seed alone."""

import os
import re
import signal
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from data_stand_ins import Data, Source, document
from tokenizers import pre_tokenizers

from flame.data import TextEncoder
from flame.data.lane_states import merge_states
from flame.errors import DataError

GLOBAL_BATCH = 8
MICRO_BATCH = 2


def global_batches(iterators, count):
    """The rows of ``count`` global batches, from the iterators of all ranks in order."""
    per_rank = GLOBAL_BATCH // MICRO_BATCH // len(iterators)
    batches = []
    for _ in range(count):
        parts = [batch for iterator in iterators for batch in islice(iterator, per_rank)]
        ids = torch.cat([inputs["input_ids"] for inputs, _ in parts])
        labels = torch.cat([labels for _, labels in parts])
        batches.append(torch.stack([ids, labels]))
    return torch.stack(batches)


def merged_state(loaders):
    """What ranks in a process group agree on by themselves."""
    states = [loader.state_dict() for loader in loaders]
    return {**states[0], "lanes": merge_states(state["lanes"] for state in states)}


def texts_of(batches):
    """All the text in some batches, as one string per row."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, "<", ">"]
    return ["".join(symbols[i] for i in row) for inputs, _ in batches for row in inputs["input_ids"].int().tolist()]


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (1, 5), (2, 0), (2, 2), (4, 0), (4, 2)])
def test_global_batches_are_the_same_for_any_number_of_ranks_and_workers(make_loader, numbered, world, workers):
    expected = global_batches([iter(make_loader(numbered))], 12)
    loaders = [make_loader(numbered, world=world, rank=rank, workers=workers) for rank in range(world)]
    assert torch.equal(global_batches([iter(loader) for loader in loaders], 12), expected)


def test_global_batches_depend_on_the_seed(make_loader, numbered):
    one, other = (global_batches([iter(make_loader(numbered, seed=seed))], 2) for seed in (1, 2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("varlen", [False, True])
def test_resume_is_exact_twice_in_a_row_over_epoch_edges_and_on_other_world_sizes(
    make_loader, numbered, workers, varlen
):
    """60 documents of some 25 tokens against 12 steps of 384 tokens: an epoch is 4 steps."""
    options = {"varlen": varlen, "context_len": 11}
    expected = global_batches([iter(make_loader(numbered, **options))], 12)
    state, done = None, 0
    for world, steps in ((1, 3), (2, 4), (4, 5)):
        loaders = [make_loader(numbered, world=world, rank=rank, workers=workers, **options) for rank in range(world)]
        if state:
            for loader in loaders:
                loader.load_state_dict(state)
        got = global_batches([iter(loader) for loader in loaders], steps)
        assert torch.equal(got, expected[done : done + steps])
        state, done = merged_state(loaders), done + steps


def test_resume_between_micro_batches(make_loader, numbered):
    whole = list(islice(make_loader(numbered), 20))
    loader = make_loader(numbered, workers=2)
    list(islice(loader, 7))
    resumed = make_loader(numbered, workers=2)
    resumed.load_state_dict(loader.state_dict())
    for (inputs, labels), (wanted_inputs, wanted_labels) in zip(islice(resumed, 13), whole[7:], strict=True):
        assert torch.equal(inputs["input_ids"], wanted_inputs["input_ids"])
        assert torch.equal(labels, wanted_labels)


def test_state_of_another_layout_is_refused(make_loader, numbered):
    state = make_loader(numbered).state_dict()
    with pytest.raises(DataError, match="24 lanes and 1 sources, the job has 8"):
        make_loader(numbered, data=Data(lanes_per_row=1)).load_state_dict(state)


@pytest.mark.parametrize(("key", "value"), [("packing", "best_fit"), ("mix", "sequence")])
def test_state_of_another_way_of_making_rows_is_refused(make_loader, numbered, key, value):
    state = make_loader(numbered).state_dict()
    with pytest.raises(DataError, match=rf"data.{key} = '.*', the job has '{value}'.*exclude_from_loading"):
        make_loader(numbered, data=Data(**{key: value})).load_state_dict(state)


def test_changed_weights_are_told_and_hold_from_there_on(make_loader, numbered, caplog):
    state = make_loader(numbered, numbered).state_dict()
    loader = make_loader(numbered, replace(numbered, weight=3.0))
    loader.load_state_dict(state)
    assert "the weights changed since the checkpoint ([[1.0, 1.0]], now [[1.0, 3.0]])" in caplog.text


def test_state_of_only_one_of_two_ranks_is_refused(make_loader, numbered):
    state = make_loader(numbered, world=2, rank=0).state_dict()
    with pytest.raises(DataError, match="lacks lane 4:"):
        make_loader(numbered, world=2, rank=1).load_state_dict(state)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
@pytest.mark.parametrize("varlen", [False, True])
@pytest.mark.parametrize("seq_len", [48, 4096])
def test_one_pass_gives_every_document_once(make_loader, numbered, world, workers, varlen, seq_len):
    loaders = [
        make_loader(numbered, world=world, rank=rank, workers=workers, varlen=varlen, repeat=False, seq_len=seq_len)
        for rank in range(world)
    ]
    rows = texts_of(batch for loader in loaders for batch in loader)
    padding = texts_of([({"input_ids": torch.zeros(1, 1)}, None)])[0]
    characters = Counter("".join(rows).replace(padding, ""))
    assert characters == Counter("".join(f"<{document(i)}>" for i in range(60)))
    if seq_len == 4096:  # rows so long that no document is spread over two
        assert sorted(int(number) for row in rows for number in re.findall(r"\[(\d+)\]", row)) == list(range(60))


def test_every_iteration_of_one_pass_is_the_whole_pass_again(make_loader, numbered):
    loader = make_loader(numbered, repeat=False)
    first = texts_of(loader)
    next(iter(loader))
    assert texts_of(loader) == first


def test_one_pass_scores_every_token_but_the_first_of_each_lane(make_loader, numbered):
    scored = sum(int((labels != -100).sum()) for _, labels in make_loader(numbered, repeat=False))
    tokens = sum(len(document(i)) + 2 for i in range(60))
    assert scored == tokens - GLOBAL_BATCH


def test_an_epoch_holds_every_document_once_and_the_next_one_is_shuffled_differently(make_loader, numbered):
    """With one lane the documents come one after the other."""
    loader = make_loader(numbered, global_batch_size=1, local_batch_size=1, data=Data(lanes_per_row=1))
    order = re.findall(r"\[(\d+)\]", "".join(texts_of(list(islice(loader, 80)))))
    first, second = order[:60], order[60:120]
    assert sorted(map(int, first)) == sorted(map(int, second)) == list(range(60))
    assert first != second


def test_without_shuffling_documents_keep_their_order(make_loader, numbered):
    data = Data(lanes_per_row=1, shuffle=False)
    loader = make_loader(numbered, global_batch_size=1, local_batch_size=1, data=data)
    order = re.findall(r"\[(\d+)\]", "".join(texts_of(list(islice(loader, 80)))))
    assert list(map(int, order[:120])) == [*range(60), *range(60)]


def test_a_killed_worker_is_an_error_and_not_a_hang(make_loader, numbered):
    loader = make_loader(numbered, workers=2)
    iterator = iter(loader)
    next(iterator)
    pool = loader._close_pool.peek()[1].__self__
    os.kill(pool.workers[1].process.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"data worker \d+ died \(SIGKILL\)"):
        list(islice(iterator, 1000))


def test_close_and_garbage_collection_end_the_workers(make_loader, encoder, numbered):
    loader = make_loader(numbered, workers=2)
    next(iter(loader))
    workers = loader._close_pool.peek()[1].__self__.workers
    loader.close()
    assert all(worker.process.poll() is not None for worker in workers)


def test_an_encoder_that_workers_cannot_import_is_an_error(make_loader, numbered, encoder, monkeypatch):
    homeless = type("Homeless", (TextEncoder,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Homeless", homeless, raising=False)
    monkeypatch.setattr(encoder, "__class__", homeless)
    with pytest.raises(DataError, match=r"cannot be loaded in a worker .*num_workers = 0"):
        next(iter(make_loader(numbered, workers=1, encoder=encoder)))


def test_long_rows_work(make_loader, numbered):
    loader = make_loader(numbered, seq_len=65536, global_batch_size=1, local_batch_size=1, workers=2)
    inputs, labels = next(iter(loader))
    assert inputs["input_ids"].shape == labels.shape == (1, 65536)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 6, "local_batch_size": 4}, "6 is not a multiple of 4"),
        ({"sources": []}, "no data source"),
        ({"sources": [Source("builtin:python-stdlib", weight=-1.0)]}, "make them positive"),
        ({"sources": [Source("builtin:python-stdlib", streaming=True)]}, "set streaming = false"),
    ],
)
def test_impossible_settings_are_errors(make_loader, numbered, changes, message):
    sources = changes.pop("sources", [numbered])
    with pytest.raises(DataError, match=message):
        make_loader(*sources, **changes)
