"""Pairs against naive counting, expectation, shrinkage, planted pairs, and the half that did not choose them."""

from itertools import combinations

import numpy as np
import pytest

from moelab.analysis import coactivation
from moelab.analysis.coactivation import coactivation_of_counts, expected_pairs, gamma_prior, top_share
from moelab.domain.counts import CountsTable
from moelab.domain.trace import Trace
from tests.seeded_traces import seeded_trace


def independent_trace(seed, num_tokens=4000, num_requests=40, num_experts=12, planted=0.0):
    """Uniform draws of 3 of 12; with probability ``planted`` a token that has expert 0 gets 1 as well."""
    rng = np.random.default_rng(seed)
    base = seeded_trace(0, num_requests=num_requests, prefill_tokens=0, decode_tokens=num_tokens // num_requests)
    ids = np.argsort(rng.random((base.num_tokens, 3, num_experts)), axis=2)[:, :, :3].astype(np.uint16)
    has = (ids == 0).any(2) & ~(ids == 1).any(2) & (rng.random(ids.shape[:2]) < planted)
    place = np.argmax(ids != 0, axis=2)
    for token, layer in np.argwhere(has):
        ids[token, layer, place[token, layer]] = 1
    return Trace(base.header, ids, np.ones(ids.shape, np.float16), base.tokens)


@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_naive_pairs(seed):
    trace = seeded_trace(seed, batch=2, unrouted=0.2)
    result = coactivation(trace)
    naive = np.zeros((3, 12, 12), int)
    between = np.zeros((2, 12, 12), int)
    for token in trace.experts.tolist():
        for layer, row in enumerate(token):
            for a, b in combinations([e for e in row if e != 65535], 2):
                naive[layer, a, b] += 1
                naive[layer, b, a] += 1
            if layer < 2:
                for a in row:
                    for b in token[layer + 1]:
                        if 65535 not in (a, b):
                            between[layer, a, b] += 1
    assert np.array_equal(result.counts, naive)
    for layer in range(2):
        assert result.adjacent[layer] == pytest.approx(top_share(between[layer], 0.2))
    assert result.expected.sum((1, 2)) == pytest.approx(naive.sum((1, 2)))
    frame = result.to_frame()
    excess = (frame.tokens - frame.expected_tokens).tolist()
    assert excess == sorted(excess, reverse=True)
    upper = np.triu(naive - result.expected, 1)
    assert excess[0] == pytest.approx(upper.max())


def test_independent_experts_have_lift_one():
    result = coactivation(independent_trace(0))
    lift = result.shrunk_lift()
    off = ~np.eye(12, dtype=bool)
    assert np.abs(lift[:, off] - 1).max() < 0.08, "shrunk: sampling noise alone would give more"
    plain = result.counts[:, off] / result.expected[:, off]
    assert np.abs(plain - 1).max() > np.abs(lift[:, off] - 1).max()
    assert result.held_out.mean() == pytest.approx(1, abs=0.03), "pairs found in noise do not hold"
    assert result.found.mean() > 1.03


def test_planted_pair_is_found_with_its_interval_and_holds_out():
    result = coactivation(independent_trace(1, planted=0.8))
    for layer in range(3):
        assert [layer, 0, 1] in result.top[:3].tolist()
    frame = result.to_frame().iloc[:3]
    assert (frame.low > 1.5).all()
    assert (frame.low < frame.lift).all()
    assert (frame.lift < frame.high).all()
    assert (result.held_out > 1.1).all()


def test_prior_by_moments_recovers_a_gamma():
    rng = np.random.default_rng(0)
    expected = rng.uniform(5, 50, 20_000)
    counts = rng.poisson(expected * rng.gamma(4, 1 / 4, 20_000))
    assert gamma_prior(counts, expected) == pytest.approx(4, rel=0.1)
    assert gamma_prior(expected, expected) == 1e9, "no spread at all: shrunk to 1"


def test_expected_pairs_by_hand():
    """Loads 4, 2, 2 over 4 tokens of two experts: products 8 : 8 : 4, scaled to the 4 pairs counted (both ways: 8)."""
    expected = expected_pairs(np.array([[4, 2, 2]]), np.array([[8]]), 4)
    assert expected[0, 0, 1] == pytest.approx(4 * 8 / 20)
    assert expected[0, 1, 2] == pytest.approx(4 * 4 / 20)
    assert expected.sum() == pytest.approx(8)


def test_counts_table_gives_what_it_can():
    trace = independent_trace(2, planted=0.5)
    whole = coactivation(trace)
    low, high = np.triu_indices(12, 1)
    pairs = [(la, a, b, whole.counts[la, a, b]) for la in range(3) for a, b in zip(low, high, strict=True)]
    table = CountsTable("m", trace.num_tokens, 3, (0, 1, 2), trace.loads(), np.array(pairs, np.int64))
    result = coactivation_of_counts(table)
    assert np.array_equal(result.counts, whole.counts)
    np.testing.assert_allclose(result.expected, whole.expected)
    assert np.array_equal(result.top, whole.top)
    assert np.isnan(result.top_low).all()
    assert not result.is_whole
    assert coactivation_of_counts(CountsTable("m", trace.num_tokens, 3, (0, 1, 2), trace.loads())) is None
