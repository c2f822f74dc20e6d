"""Both ways of packing, against the most naive implementation of their rules."""

import random

import numpy as np
import pytest
from data_stand_ins import make_stream

from flame.data.packing import IGNORE, pack_continuous, pack_documents

LENGTH = 13


def random_documents(seed):
    """Documents of 0 to 40 tokens; an empty one comes first and another last."""
    rng = random.Random(seed)
    lengths = [0, *(rng.choice([0, 1, 2, 5, LENGTH, 2 * LENGTH, 40]) for _ in range(30)), 0]
    return [[rng.randrange(1, 1000) for _ in range(length)] for length in lengths]


def packed_rows(documents, pack):
    feeder, stream = make_stream(documents)
    rows = []
    while True:
        feeder.fill(stream, LENGTH + 1)
        row = pack(stream)
        if row is None:
            return rows
        rows.append(row)


def naive_continuous(documents):
    tokens = [token for document in documents for token in document]
    targets = [*tokens[1:], IGNORE]
    rows = []
    for start in range(0, len(tokens), LENGTH):
        padding = max(0, start + LENGTH - len(tokens))
        ids = tokens[start : start + LENGTH] + [0] * padding
        rows.append([ids, targets[start : start + LENGTH] + [IGNORE] * padding])
    return rows


def naive_documents(documents, context_len):
    flat = [(token, number) for number, document in enumerate(documents) for token in document]
    rows = []
    for start in range(0, len(flat), LENGTH):
        row, position, previous = [], 0, None
        for place in range(start, start + LENGTH):
            token, number = flat[place] if place < len(flat) else (0, None)
            position = 0 if place == start or number != previous or position + 1 == context_len else position + 1
            has_next = number is not None and place + 1 < len(flat) and flat[place + 1][1] == number
            row.append((token, flat[place + 1][0] if has_next else IGNORE, position))
            previous = number
        rows.append([list(plane) for plane in zip(*row, strict=True)])
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_continuous_rows_equal_the_naive_ones(seed):
    documents = random_documents(seed)
    rows = packed_rows(documents, lambda stream: pack_continuous(stream, LENGTH))
    assert [row.tolist() for row in rows] == naive_continuous(documents)


@pytest.mark.parametrize("context_len", [1, 4, LENGTH, 100])
@pytest.mark.parametrize("seed", range(10))
def test_rows_of_isolated_documents_equal_the_naive_ones(seed, context_len):
    documents = random_documents(seed)
    rows = packed_rows(documents, lambda stream: pack_documents(stream, LENGTH, context_len))
    assert [row.tolist() for row in rows] == naive_documents(documents, context_len)


def masked(documents, seed):
    """The documents with about every third token written as never to be predicted."""
    rng = random.Random(seed)
    return [[~token if rng.random() < 0.3 else token for token in document] for document in documents]


@pytest.mark.parametrize("pack", [lambda s: pack_continuous(s, LENGTH), lambda s: pack_documents(s, LENGTH, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_tokens_that_are_never_predicted_are_inputs_only(seed, pack):
    documents = random_documents(seed)
    plain, hidden = (packed_rows(d, pack) for d in (documents, masked(documents, seed)))
    flags = packed_rows([[int(t < 0) for t in document] for document in masked(documents, seed)], pack)
    for row, wanted, flag in zip(hidden, plain, flags, strict=True):
        assert np.array_equal(row[0], wanted[0]) and np.array_equal(row[2:], wanted[2:])
        assert np.array_equal(row[1], np.where(flag[1] == 1, IGNORE, wanted[1]))


def test_a_stream_goes_on_from_documents_finished_and_tokens_used():
    documents = random_documents(3)
    for taken in range(0, sum(map(len, documents)), 3):
        feeder, stream = make_stream(documents)
        feeder.fill(stream, taken + 1)
        stream.advance(taken)
        resumed_feeder, resumed = make_stream(documents, *stream.place)
        assert resumed.place == stream.place
        for other, other_feeder in ((stream, feeder), (resumed, resumed_feeder)):
            other_feeder.fill(other, 10_000)
        assert resumed.window(10_000).tolist() == stream.window(10_000).tolist()
        assert resumed.place == stream.place


def test_a_document_that_has_become_shorter_gives_nothing_more():
    documents = [[1, 2, 3], [4, 5], [6]]
    feeder, stream = make_stream(documents, finished=0, used=7)
    feeder.fill(stream, 10)
    assert stream.window(10).tolist() == [4, 5, 6]
