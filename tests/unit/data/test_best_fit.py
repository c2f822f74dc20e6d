"""Rows of chosen documents: full, hardly a document cut, nothing lost, and exactly resumable."""

import random
from collections import Counter

import numpy as np
import pytest
from data_stand_ins import make_stream

from flame.data import best_fit as best_fit_module
from flame.data.best_fit import best_fit, choose_block
from flame.data.packers import BlockPacker, RowShape
from flame.data.packing import IGNORE

LENGTH = 32


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(best_fit_module, "BLOCK_TOKENS", 512)


def random_documents(seed, count=200, longest=2 * LENGTH + 5):
    """Documents without a token in common, so that every token of a row tells where it is from."""
    rng = random.Random(seed)
    lengths = [
        rng.choice([0, 1, 2, 7, 20, LENGTH - 1, LENGTH, LENGTH + 1, rng.randrange(1, longest)]) for _ in range(count)
    ]
    ends = np.cumsum(lengths)
    return [list(range(end - length + 1, end + 1)) for end, length in zip(ends.tolist(), lengths, strict=True)]


def make_packer(
    documents, state=(0, 0, 0), *, packing="best_fit", too_long="split", context_len=0, shuffle=True, whole=False
):
    feeder, stream = make_stream(documents, *state[:2])
    shape = RowShape(LENGTH, context_len, packing, too_long, shuffle, 3, whole)
    return BlockPacker(feeder, stream, shape, 0, state[2], Counter())


def rows_of(packer, most=10_000):
    rows = []
    while len(rows) < most and (row := packer.next_row()) is not None:
        rows.append(row)
    return rows


def longest_part(document, longest, too_long):
    if len(document) <= longest or too_long == "split":
        return document
    return document[:longest] if too_long == "cut" else []


@pytest.mark.parametrize("packing", ["best_fit", "rows"])
@pytest.mark.parametrize("too_long", ["split", "cut", "skip"])
@pytest.mark.parametrize("context_len", [0, 13, LENGTH])
@pytest.mark.parametrize("seed", range(3))
def test_every_token_is_given_once_with_its_successor_as_label(packing, too_long, context_len, seed):
    documents = random_documents(seed)
    packer = make_packer(documents, packing=packing, too_long=too_long, context_len=context_len)
    rows = rows_of(packer)
    wanted = [longest_part(document, context_len or LENGTH, too_long) for document in documents]
    given = Counter(token for row in rows for token in row[0].tolist() if token)
    assert given == Counter(token for document in wanted for token in document)
    last = {document[-1] for document in documents if document}
    for row in rows:
        ids, labels = row[0].tolist(), row[1].tolist()
        for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
            following = ids[place + 1] if place + 1 < LENGTH and ids[place + 1] else IGNORE
            if not token:
                assert label == IGNORE
            elif token not in last:
                assert label == token + 1
            else:
                assert label == (IGNORE if context_len else following)
    tally = packer.tally
    assert tally["documents"] == sum(map(bool, documents))
    assert tally["tokens left out"] == sum(map(len, documents)) - sum(map(len, wanted))
    assert tally["tokens"] == sum(given.values()) and tally["rows"] == len(rows)


@pytest.mark.parametrize("seed", range(3))
def test_positions_restart_at_every_part_of_a_document(seed):
    documents = random_documents(seed)
    for row in rows_of(make_packer(documents, context_len=13)):
        place = 0
        for start, token in enumerate(row[0].tolist()):
            continues = start and token == row[0, start - 1] + 1 and row[1, start - 1] == token and place < 12
            place = place + 1 if continues and row[2, start] else 0
            assert row[2, start] == place or not token
        assert row[2].max() < 13


@pytest.mark.parametrize("packing", ["best_fit", "rows"])
@pytest.mark.parametrize("too_long", ["split", "cut", "skip"])
@pytest.mark.parametrize("seed", range(2))
def test_every_row_can_be_resumed_from(packing, too_long, seed):
    documents = random_documents(seed, count=120)
    packer = make_packer(documents, packing=packing, too_long=too_long)
    rows, states = [], [packer.state]
    while (row := packer.next_row()) is not None:
        rows.append(row)
        states.append(packer.state)
    for given, state in list(enumerate(states))[::3]:
        resumed = make_packer(documents, state, packing=packing, too_long=too_long)
        assert resumed.state == state
        following = rows_of(resumed, most=3)
        assert np.array_equal(following, rows[given : given + 3])


def test_rows_begin_with_a_document_and_few_documents_are_cut():
    rng = random.Random(0)
    lengths = [min(int(rng.lognormvariate(1.7, 0.8)) + 1, LENGTH) for _ in range(5_000)]
    firsts = np.cumsum([1, *lengths])
    packer = make_packer([list(range(a, a + n)) for a, n in zip(firsts.tolist(), lengths, strict=False)])
    rows = rows_of(packer)
    tally = packer.tally
    assert tally["tokens"] / (tally["rows"] * LENGTH) >= 0.99
    assert tally["cut"] / tally["documents"] < 0.05
    assert np.isin([row[0, 0] for row in rows], firsts).mean() > 0.99
    assert [row[0, 0] for row in rows[:20]] != sorted(row[0, 0] for row in rows[:20])


def test_rows_come_in_the_order_of_the_files_without_shuffling():
    documents = [[number + 1] * 20 for number in range(50)]
    rows = rows_of(make_packer(documents, packing="rows", shuffle=False))
    assert [int(row[0, 0]) for row in rows] == list(range(1, 51))


@pytest.mark.parametrize("seed", range(20))
def test_fitting_uses_every_token_of_every_item_once(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LENGTH + 1, 200)
    items, rows, left = choose_block(lengths, LENGTH, 512)
    lengths = lengths[:items]
    lengths[-1] -= left
    assert 256 <= lengths.sum() <= rows * LENGTH <= 512
    packed = best_fit(lengths, LENGTH, rows)
    assert all(sum(stop - start for _, start, stop in row) <= LENGTH for row in packed)
    parts = sorted(part for row in packed for part in row)
    for item, length in enumerate(lengths):
        spans = [(start, stop) for number, start, stop in parts if number == item]
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(before[1] == after[0] for before, after in zip(spans, spans[1:], strict=False))


def test_documents_longer_than_a_row_never_clog():
    """nanochat #590: conversations as long as a row never fitted beside another, and batches came out empty."""
    rows = rows_of(make_packer([[7] * LENGTH * 3 for _ in range(100)]))
    assert len(rows) == 300 and all((row[0] == 7).all() for row in rows)
    assert rows_of(make_packer([[7] * LENGTH * 3 for _ in range(100)], too_long="skip")) == []


@pytest.mark.parametrize("context_len", [0, 13])
def test_tokens_that_are_never_predicted_are_inputs_only(context_len):
    documents = random_documents(5)
    hidden = [[~token if token % 3 == 0 else token for token in document] for document in documents]
    plain, masked = (rows_of(make_packer(given, context_len=context_len)) for given in (documents, hidden))
    for row, wanted in zip(masked, plain, strict=True):
        assert np.array_equal(row[0], wanted[0]) and np.array_equal(row[2:], wanted[2:])
        assert np.array_equal(row[1], np.where(wanted[1] % 3 == 0, IGNORE, wanted[1]))


@pytest.mark.parametrize("seed", range(3))
def test_documents_that_are_to_stay_whole_are_padded_and_never_cut(seed):
    rng = random.Random(seed)
    lengths = [rng.choice([3, 5, 6, 9, 12, LENGTH - 4, LENGTH]) for _ in range(1000)]
    documents = [[number] * length for number, length in enumerate(lengths, start=1)]
    packer = make_packer(documents, whole=True)
    rows, states = [], []
    while (row := packer.next_row()) is not None:
        rows.append(row)
        states.append(packer.state)
    homes = Counter(number for row in rows for number in set(row[0].tolist()) - {0})
    assert set(homes.values()) == {1} and len(homes) == 1000
    assert packer.tally["cut"] == 0 and packer.tally["tokens"] == sum(lengths)
    assert packer.tally["tokens"] / (packer.tally["rows"] * LENGTH) > 0.95
    resumed = make_packer(documents, states[40], whole=True)
    assert np.array_equal(rows_of(resumed, most=20), rows[41:61])
