"""One hash per global batch, whatever the ranks, workers and micro-batches."""

import hashlib
import json
from dataclasses import replace
from itertools import islice

import pytest
from data_stand_ins import Data, Source, document

from flame.data.fingerprint import fingerprints


@pytest.mark.parametrize("varlen", [False, True])
def test_fingerprints_do_not_depend_on_ranks_workers_or_micro_batches(make_loader, numbered, varlen):
    def hashes(world, workers, local_batch_size):
        options = {"varlen": varlen, "local_batch_size": local_batch_size}
        loaders = [make_loader(numbered, world=world, rank=rank, workers=workers, **options) for rank in range(world)]
        return list(islice(fingerprints(loaders, 8 // (world * local_batch_size)), 5))

    expected = hashes(1, 0, 8)
    assert len(set(expected)) == 5
    assert hashes(1, 2, 2) == hashes(2, 0, 4) == hashes(4, 1, 1) == expected


@pytest.mark.parametrize(
    ("changes", "data", "expected"),
    [
        ({}, {}, "ce62668b42fc8974"),
        ({"varlen": True, "context_len": 31}, {}, "646d34600bcd6cb8"),
        ({"repeat": False}, {}, "b1a811c811a8feae"),
        ({"repeat": False, "varlen": True, "context_len": 31}, {}, "4cba8e12e7a88192"),
        ({}, {"shuffle": False}, "c78f36d00d97660c"),
        ({"varlen": True, "context_len": 31}, {"max_document_bytes": 20}, "efdfc7e2fdbae0da"),
    ],
)
def test_the_order_is_that_of_earlier_versions(make_loader, numbered, tmp_path, changes, data, expected):
    """A run may be resumed by a later version of flame: these hashes must never change."""
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": "other " + document(3 * i)}) + "\n" for i in range(23)))
    loader = make_loader(replace(numbered, weight=3.0), Source(str(other)), data=Data(**data), **changes)
    digest = hashlib.blake2b(digest_size=8)
    for batch in islice(fingerprints([loader], 4), 40):
        digest.update(batch.encode())
    assert digest.hexdigest() == expected
