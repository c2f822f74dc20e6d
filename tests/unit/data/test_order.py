"""The document order is a permutation per epoch, of documents or of blocks of them."""

import numpy as np
import pytest

from flame.data.order import HOLE, DocumentOrder


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 1000, 4097])
def test_every_epoch_is_a_permutation_of_its_own(size):
    order = DocumentOrder(size, seed=3)
    epochs = order.documents(np.arange(3 * size)).reshape(3, size)
    for epoch in epochs:
        assert sorted(epoch) == list(range(size))
    if size > 100:
        assert not np.array_equal(epochs[0], epochs[1])
        # A uniform permutation has about one fixed point and follows i by i + 1 about once.
        assert (epochs[0] == np.arange(size)).sum() < 10
        assert (np.diff(epochs[0]) == 1).sum() < 10


def test_seeds_and_sources_have_orders_of_their_own():
    orders = [DocumentOrder(1000, seed, source) for seed, source in ((0, 0), (1, 0), (0, 1))]
    first = [tuple(order.documents(np.arange(1000))) for order in orders]
    assert len(set(first)) == 3


def test_sizes_beyond_four_billion_work():
    documents = DocumentOrder(10**13, seed=0).documents(np.arange(1000))
    assert len(set(documents.tolist())) == 1000
    assert 0.4e13 < documents.mean() < 0.6e13


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("size", "block"), [(1, 4), (17, 4), (64, 16), (1000, 64), (1000, 1000)])
def test_epochs_of_blocks_hold_every_document_once_and_blocks_stay_together(size, block, shuffle):
    order = DocumentOrder(size, seed=3, shuffle=shuffle, block=block)
    epochs = order.documents(np.arange(2 * order.epoch)).reshape(2, -1, block)
    for epoch in epochs:
        assert sorted(epoch[epoch != HOLE]) == list(range(size))
        for turn in epoch:
            assert len(set(turn[turn != HOLE] // block)) == 1
    if shuffle and size == 1000 and block == 64:
        assert not np.array_equal(epochs[0], epochs[1])
        assert len({tuple(turn % block) for turn in epochs[0] if HOLE not in turn}) == 15, "a shuffle for every block"


@pytest.mark.parametrize("block", [1, 4])
def test_lanes_share_the_sequence_out_in_whole_blocks(block):
    order = DocumentOrder(100, seed=3, block=block)
    positions = [order.positions(lane, 3, np.arange(8)) for lane in range(3)]
    assert sorted(np.concatenate(positions)) == list(range(24))
    assert [set(own[:block] // block) for own in positions] == [{0}, {1}, {2}]


@pytest.mark.parametrize("block", [1, 8])
def test_documents_of_blocks_can_be_asked_for_in_any_order(block):
    order = DocumentOrder(100, seed=3, block=block)
    positions = np.random.default_rng(0).permutation(250)
    assert np.array_equal(order.documents(positions), order.documents(np.arange(250))[positions])
