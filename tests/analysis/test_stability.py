"""Divergence against SciPy, drift that was planted and drift that was not, halves, and one request."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from moelab.analysis import stability
from moelab.analysis.stability import hot_set, hot_set_jaccard, jensen_shannon
from moelab.domain.trace import TokenTable, Trace
from tests.seeded_traces import seeded_trace


def drawn(seed, *, moved_at=None, num_requests=64, tokens=40, num_experts=20, domains=None):
    """Requests whose experts follow one popularity; from request ``moved_at`` on another."""
    rng = np.random.default_rng(seed)
    base = seeded_trace(0, num_requests=2, num_experts=num_experts)
    popularity = rng.normal(0, 1.0, (2, 3, num_experts))
    request = np.repeat(np.arange(num_requests), tokens)
    epoch = (request >= moved_at).astype(int) if moved_at is not None else np.zeros(len(request), int)
    own = rng.normal(0, 0.3, (num_requests, 3, num_experts))
    score = popularity[epoch] + own[request] + rng.gumbel(size=(len(request), 3, num_experts))
    ids = np.argsort(-score, axis=2)[:, :, :3].astype(np.uint16)
    domain = -1 if domains is None else domains[request]
    table = TokenTable.build(
        step=np.arange(len(request)), request=request, position=np.arange(len(request)) % tokens, phase=1, domain=domain
    )
    return Trace(base.header, ids, np.ones(ids.shape, np.float16), table)


def test_divergence_equals_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 50, (2, 4, 16))
    got = jensen_shannon(a, b)
    for i in range(4):
        assert got[i] == pytest.approx(jensenshannon(a[i], b[i], base=2) ** 2)
    assert jensen_shannon(np.array([3, 0]), np.array([0, 5])) == pytest.approx(1)
    assert np.isnan(jensen_shannon(np.array([0, 0]), np.array([0, 5])))


def test_hot_sets_by_hand():
    a, b = np.array([9, 9, 5, 1, 0]), np.array([1, 9, 9, 0, 0])
    assert hot_set(a, 0.4).tolist() == [True, True, False, False, False]
    assert hot_set_jaccard(a, b, 0.4) == 1 / 3
    assert hot_set_jaccard(a, a, 0.4) == 1


def test_planted_drift_is_seen_and_shuffled_requests_are_not():
    steady, moved = stability(drawn(1)), stability(drawn(1, moved_at=32))
    assert moved.windows.drifts.all()
    assert steady.windows.drifts.sum() <= 2, "5% each by construction"
    assert moved.windows.js.min() > 3 * steady.windows.js.max()
    assert (moved.windows.low > moved.windows.null).all()
    assert moved.windows.js_matrix[0, 1] < moved.windows.js_matrix[0, 7]
    assert moved.windows.jaccard_matrix[0, 1] > moved.windows.jaccard_matrix[0, 7]
    assert moved.windows.num_tokens.sum() == 64 * 40
    assert moved.windows.num_requests.tolist() == [8] * 8


def test_domains():
    trace = drawn(2, moved_at=32, domains=(np.arange(64) >= 32).astype(int))
    result = stability(trace)
    assert result.domains.names == ("even", "odd")
    assert result.domains.drifts.all()
    same = stability(drawn(2, domains=np.arange(64) % 2))
    assert result.domains.js.min() > 5 * same.domains.js.max()
    by_hand = jensen_shannon(trace.requests(np.arange(32)).loads(), trace.requests(np.arange(32, 64)).loads()).mean()
    assert result.domains.js_matrix[0, 1] == pytest.approx(by_hand)
    frame = result.to_frame()
    assert set(frame.kind) == {"window", "domain"}
    assert set(frame.routing) == {"synthetic"}


def test_halves_carry_less_than_the_sample_says():
    result = stability(drawn(3, num_requests=8, tokens=10))
    assert result.split == "request"
    assert np.median(result.held_out) < np.median(result.in_sample)
    large = stability(drawn(3, num_requests=200, tokens=40))
    gap = np.median(large.in_sample) - np.median(large.held_out)
    assert 0 <= gap < np.median(result.in_sample) - np.median(result.held_out)
    assert np.median(large.hot_set_jaccard) > np.median(result.hot_set_jaccard)


def test_one_request_is_cut_in_time_without_null_or_interval():
    result = stability(drawn(4, num_requests=1, tokens=80))
    assert result.split == "time"
    assert len(result.held_out) == 1
    assert "in time" in result.windows.names[0]
    assert np.isnan(result.windows.low).all()
    assert np.isnan(result.windows.null_95).all()
    assert not result.windows.drifts.any()
    assert result.domains is None
    assert "time" in result._repr_html_()
