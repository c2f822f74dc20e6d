"""One hash per global batch, whatever the ranks, workers and micro-batches."""

from itertools import islice

import pytest

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
