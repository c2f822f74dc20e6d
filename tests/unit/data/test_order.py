"""The document order is a permutation per epoch, and the choice of sources follows the weights."""

from collections import Counter

import numpy as np
import pytest

from flame.data.order import DocumentOrder, choose_source


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


def test_documents_can_be_asked_for_in_any_order():
    order = DocumentOrder(100, seed=3)
    positions = np.random.default_rng(0).permutation(250)
    assert np.array_equal(order.documents(positions), order.documents(np.arange(250))[positions])


def test_seeds_and_sources_have_orders_of_their_own():
    orders = [DocumentOrder(1000, seed, source) for seed, source in ((0, 0), (1, 0), (0, 1))]
    first = [tuple(order.documents(np.arange(1000))) for order in orders]
    assert len(set(first)) == 3


def test_sizes_beyond_four_billion_work():
    documents = DocumentOrder(10**13, seed=0).documents(np.arange(1000))
    assert len(set(documents.tolist())) == 1000
    assert 0.4e13 < documents.mean() < 0.6e13


@pytest.mark.parametrize("weights", [[1.0], [0.7, 0.3], [8.0, 1.0, 1.0], [0.0, 2.0, 1.0, 0.0]])
def test_shares_of_rows_follow_the_weights_over_time_and_within_a_step(weights):
    shares = np.array(weights) / sum(weights)
    in_time = Counter(choose_source(weights, 5, 3, row) for row in range(1000))
    in_step = Counter(choose_source(weights, 5, lane, 9) for lane in range(1000))
    for counts in (in_time, in_step):
        assert np.abs(np.array([counts[i] / 1000 for i in range(len(weights))]) - shares).max() < 0.01
