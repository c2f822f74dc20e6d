"""Both ways of packing, against the most naive implementation of their rules."""

import random

import numpy as np
import pytest

from flame.data.order import DocumentOrder
from flame.data.packing import IGNORE, pack_continuous, pack_documents
from flame.data.sources.records import BadRowPolicy
from flame.data.streams import Feeder, TokenStream

LENGTH = 13


class ListSource:
    """Documents given as lists of token ids."""

    name = "list"

    def __init__(self, documents):
        self.documents = documents

    def __len__(self):
        return len(self.documents)

    def read(self, indices) -> list:
        return [{"ids": self.documents[i]} for i in indices]


class ListEncoder:
    def encode(self, records):
        return [np.array(record["ids"], np.int32) for record in records]


def make_stream(documents, finished=0, used=0):
    source = ListSource(documents)
    feeder = Feeder(
        source=source,
        order=DocumentOrder(len(source), seed=0, shuffle=False),
        encoder=ListEncoder(),
        policy=BadRowPolicy("error"),
        lanes=1,
        repeat=False,
        max_document_bytes=100,
    )
    stream = TokenStream(0, finished, used)
    feeder.streams.append(stream)
    return feeder, stream


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


def test_a_stream_goes_on_from_documents_finished_and_tokens_used():
    documents = random_documents(3)
    feeder, stream = make_stream(documents)
    feeder.fill(stream, 10_000)
    while not stream.used:
        stream.take(7)
    resumed_feeder, resumed = make_stream(documents, stream.finished, stream.used)
    resumed_feeder.fill(resumed, 10_000)
    rest, resumed_rest = (np.concatenate([part.tokens for part in s.take(10_000)]) for s in (stream, resumed))
    assert rest.tolist() == resumed_rest.tolist()
