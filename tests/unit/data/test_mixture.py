"""The choice of sources follows the weights, in every stage, and goes on without sources that have ended."""

from collections import Counter

import numpy as np
import pytest

from flame.data.mixture import Mixture

FOUR = (0.5, 0.3, 0.15, 0.05)


@pytest.mark.parametrize("weights", [(1.0,), (0.7, 0.3), (8.0, 1.0, 1.0), (0.0, 2.0, 1.0, 0.0), FOUR])
def test_shares_of_rows_follow_the_weights_over_time_and_within_a_step(weights):
    mixture = Mixture(weights, seed=5)
    shares = np.array(weights) / sum(weights)
    in_time = Counter(mixture.choose(3, row) for row in range(1000))
    in_step = Counter(mixture.choose(lane, 9) for lane in range(1000))
    for counts in (in_time, in_step):
        assert np.abs(np.array([counts[i] / 1000 for i in range(len(weights))]) - shares).max() < 0.01


def test_every_step_of_a_stage_has_its_weights():
    mixture = Mixture((1.0, 1.0), 5, ((3, (1.0, 0.0)), (6, (0.0, 1.0))), rows_per_step=4, lanes_per_row=3)
    sources = {step: set() for step in range(1, 10)}
    for lane in range(12):
        for row in range(3):
            sources[mixture.step(lane, row)].add(mixture.choose(lane, row))
    assert [sources[step] for step in range(1, 10)] == [{0, 1}] * 2 + [{0}] * 3 + [{1}] * 4


def test_rows_of_an_ended_source_go_to_the_others_by_their_weights():
    mixture = Mixture(FOUR, seed=5)
    counts = Counter(mixture.choose(lane, row, frozenset({0})) for lane in range(40) for row in range(100))
    assert [counts[number] / 4000 for number in range(4)] == pytest.approx([0, 0.6, 0.3, 0.1], abs=0.005)
    assert mixture.choose(0, 0, frozenset(range(4))) is None


def test_where_all_sources_of_a_stage_have_ended_the_others_have_its_rows_by_their_own_weights():
    mixture = Mixture((0.0, 3.0, 1.0, 0.0), 5, ((5, (1.0, 0.0, 0.0, 0.0)), (1000, (0.0, 0.0, 1.0, 0.0))))
    lanes = range(400)
    by_weight = Counter(mixture.choose(lane, 20, frozenset({0})) for lane in lanes)
    assert [by_weight[number] / 400 for number in range(4)] == pytest.approx([0, 0.75, 0.25, 0], abs=0.01)
    assert {mixture.choose(lane, 2, frozenset({1, 2})) for lane in lanes} == {0}, "has a weight later"
    assert mixture.choose(0, 20, frozenset({0, 1, 2})) is None, "the last one has none in any stage"


def test_a_sequence_takes_the_first_source_that_has_not_ended():
    mixture = Mixture((1.0, 1.0, 1.0), 5, in_sequence=True)
    assert [mixture.choose(7, 7, frozenset(range(ended))) for ended in range(4)] == [0, 1, 2, None]
