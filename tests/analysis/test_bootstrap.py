"""Loads by request against counting, and an interval that covers the truth where requests are clusters."""

import numpy as np

from moelab.analysis.bootstrap import RequestLoads, basic_interval, resamples
from tests.seeded_traces import seeded_trace


def test_loads_of_each_request():
    trace = seeded_trace(5, batch=2, unrouted=0.2, num_requests=5)
    loads = RequestLoads.of_trace(trace)
    assert (loads.num_requests, loads.num_clusters, loads.requests_per_cluster) == (5, 5, 1)
    for request in range(5):
        part = trace.requests([request])
        assert np.array_equal(loads.loads[request], part.loads())
        assert loads.num_tokens[request] == part.num_tokens
        assert loads.domain[request] == part.tokens.domain[0]
    assert np.array_equal(loads.cluster_of_token, trace.tokens.request)


def test_requests_count_in_the_order_in_which_they_begin():
    trace = seeded_trace(5, num_requests=4)
    renamed = np.array([30, 10, 20, 7], np.int32)[trace.tokens.request]
    object.__setattr__(trace.tokens, "request", renamed)
    loads = RequestLoads.of_trace(trace)
    assert np.array_equal(loads.loads[0], trace.requests([30]).loads())
    assert np.array_equal(loads.loads[3], trace.requests([7]).loads())


def test_groups_of_requests_where_memory_is_short(monkeypatch):
    monkeypatch.setattr("moelab.analysis.bootstrap._MOST_CELLS", 3 * 12 * 2)
    trace = seeded_trace(5, num_requests=5)
    loads = RequestLoads.of_trace(trace)
    assert (loads.num_requests, loads.num_clusters, loads.requests_per_cluster) == (5, 2, 3)
    assert np.array_equal(loads.loads[0], trace.requests([0, 1, 2]).loads())
    assert np.array_equal(loads.loads.sum(0), trace.loads())


def test_one_request_has_no_interval():
    assert len(resamples(1, 100, 0)) == 0
    low, high = basic_interval(np.array([0.5]), np.zeros((0, 1)))
    assert np.isnan([*low, *high]).all()


def test_interval_covers_the_truth_of_clustered_draws():
    """40 requests of 50 draws, the chance of each request is its own: 95% intervals hold the mean about as often,
    those that take draws for independent far less often."""
    rng = np.random.default_rng(0)
    truth, covered, naive = 0.3, 0, 0
    for trial in range(200):
        chance = rng.beta(3, 7, 40)
        hits = rng.binomial(50, chance).astype(float)
        value = hits.sum() / 2000
        weights = resamples(40, 200, trial)
        low, high = basic_interval(value, (weights @ hits) / (weights.sum(1) * 50))
        covered += low <= truth <= high
        error = 1.96 * (value * (1 - value) / 2000) ** 0.5
        naive += abs(value - truth) <= error
    assert 175 <= covered <= 198
    assert naive < 120
