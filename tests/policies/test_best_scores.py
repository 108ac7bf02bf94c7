"""Scores and selection of prefetch_markov against exact shares and sorting: sizes, ties, every width."""

from fractions import Fraction

import numpy as np
import pytest

from moelab.policies.prefetch_markov import FULL, add_shares, best_scores, padded
from moelab.policies.short_lanes import LANES
from tests.policies.test_policies_equal_twins import assert_equal_to_twin
from tests.seeded_traces import seeded_trace

SIZES = (1, 3, 31, 32, 33, 48, 130, 384, 400, 1024, 1100)  # from 1025 on the highest of the blocks fill a second vector


@pytest.mark.parametrize("seed", range(66))
def test_selection_is_what_sorting_finds(seed):
    draw = np.random.default_rng(seed)
    num_experts = SIZES[seed % len(SIZES)]
    width = int(draw.integers(1, num_experts + 1)) if seed % 2 else min(8, num_experts)
    scores = draw.integers(0, int(draw.choice([2, 5, 1000, FULL + 1])), num_experts)
    scores[draw.random(num_experts) < draw.choice([0, 0.5, 0.99])] = 0
    lanes = np.zeros(padded(num_experts), np.uint16)
    lanes[:num_experts] = scores
    highest = np.full(padded(len(lanes) // LANES), 77, np.uint16)
    best = np.zeros(num_experts, np.int64)
    num_best = best_scores(lanes, highest, best, width)
    expected = sorted(np.flatnonzero(scores), key=lambda expert: (-scores[expert], expert))[:width]
    assert best[:num_best].tolist() == expected


@pytest.mark.parametrize("seed", range(40))
def test_scores_are_the_exact_shares_to_their_bits(seed):
    draw = np.random.default_rng(seed)
    num_experts, size = int(draw.choice(SIZES)), int(draw.choice([1, 2, 8, 40, 256, 1000]))
    experts = draw.permutation(num_experts)[:size].astype(np.int32)
    counts = draw.integers(0, int(draw.choice([2, 256])), (2 * num_experts, padded(num_experts))).astype(np.uint8)
    counts[:, num_experts:] = 0
    counts[draw.random(2 * num_experts) < 0.3] = 0
    times = np.maximum(counts.max(1), draw.integers(0, int(draw.choice([2, 5000, 10**6])), len(counts)))
    scores = np.full(padded(num_experts), 99, np.uint16)
    number = np.zeros(1, np.float32)
    add_shares(experts, num_experts, times, counts.ravel(), num_experts, scores, number)
    # Sums of fractions with a thousand denominators take seconds: whole numbers of 2^-96 enclose them.
    seen = times[num_experts + experts].astype(object)
    rows = counts[num_experts + experts, :num_experts].astype(object)
    one_of = np.array([(FULL << 96) // (len(experts) * time) if time else 0 for time in seen], object)
    low = rows.T @ one_of
    high = low + rows[seen > 0].sum(axis=0)
    for score, least, most in zip(scores[:num_experts].tolist(), low, high, strict=True):
        assert score <= Fraction(least, 1 << 96) * (1 + Fraction(1, 10**6))
        # Eight bits of each share, whole numbers, and FULL divided by the number of experts.
        exact = Fraction(most, 1 << 96)
        assert exact - score <= exact / 128 + 2 * len(experts) + exact * len(experts) / FULL


@pytest.mark.parametrize("size", [1, 8, 57, 255, 384])
def test_what_always_followed_is_full(size):
    experts, times = np.arange(size, dtype=np.int32), np.full(size, 255)
    counts = np.zeros((size, padded(384)), np.uint8)
    counts[:, 7] = 255
    scores, number = np.zeros(padded(384), np.uint16), np.zeros(1, np.float32)
    add_shares(experts, 0, times, counts.ravel(), 384, scores, number)
    assert 0.98 * FULL <= scores[7] <= FULL
    assert scores.sum(dtype=np.int64) == scores[7]


def test_large_sets_equal_the_twin():
    """Prefill: hundreds of experts in a set, rows seen more often than a shift of 16 bits can say."""
    trace = seeded_trace(7, num_layers=3, num_experts=300, top_k=8, num_requests=2, prefill_tokens=60, decode_tokens=5)
    assert_equal_to_twin(trace, "prefetch_markov", slots_per_layer=90)


def test_more_experts_than_lanes_hold_equals_the_twin():
    trace = seeded_trace(5, num_layers=3, num_experts=150, top_k=5, num_requests=3, decode_tokens=25)
    assert_equal_to_twin(trace, "prefetch_markov", slots_per_layer=40, parameters={"largest": 4})
