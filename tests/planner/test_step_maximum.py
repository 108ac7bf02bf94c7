"""The compiled objective against every assignment, for any tiers, rates, copies, pieces and prices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_score import node_score
from moelab.planner.step_maximum import WHOLE, TierTimes, step_maxima
from tests.planner.naive_nodes import layer_steps, least_maximum
from tests.seeded_traces import seeded_trace, trace_of_sets


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_set_against_every_assignment(data):
    num_nodes = data.draw(st.integers(1, 4))
    num_tiers = num_nodes + data.draw(st.integers(0, 2))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    masks = draw.integers(0, 2**num_tiers, (1, 10)) & draw.integers(0, 2**num_tiers, (1, 10))
    if data.draw(st.booleans()):
        masks[masks == 0] = 1
    rates = draw.choice([1.0, 1.0, 2.0, 0.7], num_tiers)
    pieces = np.zeros(num_tiers, np.int64)
    pieces[:num_nodes] = draw.multinomial(WHOLE, np.full(num_nodes, 1 / num_nodes))
    times = TierTimes(num_nodes, 1 / rates / WHOLE, pieces, float(data.draw(st.sampled_from([0.0, 0.3]))))
    sets = [draw.permutation(10)[: draw.integers(1, 7)].tolist() for _ in range(5)]
    got = step_maxima(LayerSteps.of_trace(trace_of_sets(sets, num_experts=10), "token"), masks, times)
    expected = [least_maximum([int(masks[0, e]) for e in inside], times) for inside in sets]
    assert got == pytest.approx(expected, rel=1e-9)


def test_two_equal_nodes_by_hand():
    """a0, a1, both: max(a0, a1, half rounded up); cut experts add a half each."""
    times = TierTimes.equal_nodes(2)
    masks = np.array([[1, 1, 1, 2, 3, 3, 0, 0]])
    sets = [[0, 1, 2], [0, 1, 2, 4], [0, 3, 4, 5], [0, 3, 4], [6], [0, 6, 7], [6, 7]]
    got = step_maxima(LayerSteps.of_trace(trace_of_sets(sets, num_experts=8), "token"), masks, times)
    assert got.tolist() == [3, 3, 2, 2, 0.5, 2, 1]


def test_pieces_of_three_nodes_make_a_whole():
    times = TierTimes.equal_nodes(3)
    assert times.piece_sizes.sum() == WHOLE
    steps = LayerSteps.of_trace(trace_of_sets([[0, 1, 2, 3]], num_experts=4), "token")
    assert step_maxima(steps, np.zeros((1, 4), np.int64), times)[0] == pytest.approx(4 / 3, rel=1e-5)


def test_score_by_cluster_ideal_and_pairs():
    trace = seeded_trace(2, num_requests=12, num_experts=12, top_k=3)
    steps = LayerSteps.of_trace(trace, "token")
    times = TierTimes.equal_nodes(2)
    nodes, mirror = np.tile(1 + np.arange(12) % 2, (3, 1)), np.full((3, 12), 3)
    weight = np.array([0.5, 1.0, 1.5])
    score = node_score(steps, nodes, times, weight)
    expected = np.zeros(12)
    for (layer, token), inside in layer_steps(trace, "token").items():
        parity = [int(nodes[layer, e]) for e in inside]
        expected[trace.tokens.request[token]] += weight[layer] * max(parity.count(1), parity.count(2))
    assert score.maxima == pytest.approx(expected)
    assert score.ideal_mean == pytest.approx(1.5)
    assert score.ratio == pytest.approx(score.mean / 1.5)
    low, high = score.interval()
    assert low < score.mean < high
    both = node_score(steps, mirror, times, weight)
    assert both.mean == 2
    assert np.ptp(both.maxima / both.num_layer_steps) < 1e-12
    value, low, high = score.difference(both)
    assert value == pytest.approx(score.mean - 2)
    assert 0 < low < value < high
    assert score.difference(score) == (0, 0, 0)
    one = node_score(LayerSteps.of_trace(trace.requests([0]), "token"), nodes, times, weight)
    assert np.isnan(one.interval()).all()


def test_a_fast_tier_takes_its_experts_out_of_the_ideal():
    steps = LayerSteps.of_trace(trace_of_sets([[0, 1, 2, 3], [1, 2]], num_experts=4), "token")
    times = TierTimes(2, np.array([1.0, 1.0, 0.1]) / WHOLE, np.array([WHOLE // 2, WHOLE // 2, 0]))
    score = node_score(steps, np.array([[4, 1, 2, 4]]), times, np.ones(1))
    assert score.mean == 1
    assert score.ideal_mean == 1
    slow = TierTimes(2, np.array([1.0, 1.0, 2.0]) / WHOLE, times.piece_sizes)
    assert node_score(steps, np.array([[4, 1, 2, 4]]), slow, np.ones(1)).mean == (4 + 1) / 2
