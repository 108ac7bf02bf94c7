"""Lag overlap and its baselines against naive sets."""

import numpy as np
import pytest

from moelab.analysis import lag_overlap
from tests.seeded_traces import seeded_trace, trace_of_sets


def naive(trace, lag):
    """Mean over layers of shared / used, tokens of one request in their order."""
    values = []
    for layer in range(trace.header.num_layers):
        shared = used = 0
        for request in np.unique(trace.tokens.request):
            rows = trace.experts[trace.tokens.request == request, layer].tolist()
            sets = [{e for e in row if e != 65535} for row in rows]
            for now, before in zip(sets[lag:], sets, strict=False):
                shared += len(now & before)
                used += len(now)
        values.append(shared / used)
    return np.mean(values)


@pytest.mark.parametrize("seed", range(3))
def test_equals_naive_sets(seed):
    trace = seeded_trace(seed, batch=2, unrouted=0.2, num_requests=5)
    result = lag_overlap(trace, lags=(1, 2, 5))
    for i, lag in enumerate((1, 2, 5)):
        assert result.mean[i] == pytest.approx(naive(trace, lag))
        assert result.low[i] < result.high[i]


def test_baselines_equal_all_pairs_of_tokens():
    trace = seeded_trace(1, num_requests=3)
    result = lag_overlap(trace)

    def pairs(sets):
        shared = [len(a & b) / len(a) for i, a in enumerate(sets) for j, b in enumerate(sets) if i != j]
        return np.mean(shared)

    for layer in range(3):
        rows = [set(row) for row in trace.experts[:, layer].tolist()]
        assert result.popularity[layer] == pytest.approx(pairs(rows))
        of_request = [
            pairs([r for r, q in zip(rows, trace.tokens.request, strict=True) if q == request]) for request in range(3)
        ]
        assert result.same_request[layer] == pytest.approx(np.mean(of_request)), "all requests are of one length"
    assert result.chance == 3 / 12


def test_by_hand_and_lags_that_no_request_reaches():
    """{0,1} {1,2} {0,1}: lag 1 shares one of two twice, lag 2 both; lag 4 does not exist; one request: no interval."""
    result = lag_overlap(trace_of_sets([[0, 1], [1, 2], [0, 1]], num_experts=4), lags=(1, 2, 4))
    assert result.mean.tolist()[:2] == [0.5, 1.0]
    assert np.isnan(result.mean[2])
    assert np.isnan(result.low).all()
    assert "synthetic" in result._repr_html_()
