"""Several sources as one collection of documents."""

import json
import pickle
from typing import Any

import numpy as np
import pytest
from data_stand_ins import Source, TokenSource

from flame.data.sources.concatenated import ConcatenatedSource
from flame.data.sources.open import open_source
from flame.errors import DataError


def lines(folder, name, count):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": f"{name} {number}"}) + "\n" for number in range(count)))
    return open_source(Source(str(path)), ("text",), 1 << 20)


def tokens(folder):
    np.arange(5000, dtype="<u2").tofile(folder / "a.bin")
    return open_source(Source(str(folder / "a.bin"), token_dtype="uint16"), None, 1 << 20)


def test_documents_are_those_of_the_sources_one_after_the_other(tmp_path):
    source: Any = ConcatenatedSource([lines(tmp_path, "a", 3), lines(tmp_path, "b", 1), lines(tmp_path, "c", 4)])
    expected = ["a 0", "a 1", "a 2", "b 0", "c 0", "c 1", "c 2", "c 3"]
    assert (len(source), source.starts.tolist(), source.tokenized) == (8, [0, 3, 4, 8], False)
    assert [source.source_of(index) for index in range(8)] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert source.where(5) == f"{tmp_path}/c.jsonl, row 2"
    order = [7, 0, 3, 3, 5, 2]
    for opened in (source, pickle.loads(pickle.dumps(source))):
        assert [record["text"] for record in opened.read(order)] == [expected[index] for index in order]
        assert opened.read([]) == []


def test_hints_go_to_the_sources(tmp_path, monkeypatch):
    first, second = lines(tmp_path, "a", 3), lines(tmp_path, "b", 4)
    hints = []
    for source in (first, second):
        monkeypatch.setattr(source, "prefetch", lambda own, name=source.name: hints.append((name, list(own))))
    ConcatenatedSource([first, second]).prefetch([6, 1, 3])
    assert hints == [(first.name, [1]), (second.name, [3, 0])]


@pytest.mark.parametrize("turned", [False, True])
def test_text_and_token_ids_are_not_one_collection(tmp_path, turned):
    sources = [lines(tmp_path, "a", 3), tokens(tmp_path)]
    kinds = ("token ids", "text") if turned else ("text", "token ids")
    with pytest.raises(DataError, match=f"holds {kinds[0]} and '.*' {kinds[1]}: .* set data.mix = \"tokens\""):
        ConcatenatedSource(sources[::-1] if turned else sources)
    assert ConcatenatedSource([tokens(tmp_path)]).tokenized


def test_token_ids_are_read_without_an_object_per_document(tmp_path):
    rng = np.random.default_rng(0)
    sources: list[Any] = [
        TokenSource([rng.integers(0, 99, rng.integers(0, 9)).tolist() for _ in range(20)]) for _ in range(3)
    ]
    assert ConcatenatedSource(sources).read_tokens is None, "not all of them can"
    for source in sources:
        source.read_tokens = lambda indices, source=source: (
            np.array([token for i in indices for token in source.documents[i]], np.int32),
            np.array([len(source.documents[i]) for i in indices], np.int64),
        )
    joined: Any = ConcatenatedSource(sources)
    for order in (rng.permutation(60), rng.integers(0, 60, 7).tolist(), []):
        ids, lengths = joined.read_tokens(order)
        expected = [record["input_ids"].tolist() for record in joined.read(order)]
        assert ids.tolist() == [token for document in expected for token in document]
        assert lengths.tolist() == [len(document) for document in expected]
    shard = tokens(tmp_path)
    shards: Any = ConcatenatedSource([shard, shard])
    assert np.array_equal(shards.read_tokens([0])[0], shards.read([0])[0]["input_ids"])
