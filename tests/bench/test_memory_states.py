"""Steps beside a changed memory are left out, and states told apart, against plain loops and by construction."""

from __future__ import annotations

import numpy as np
import pytest

from moelab.bench.memory_states import APART, CHANGED, states, unchanged


@pytest.mark.parametrize("seed", range(5))
def test_a_step_counts_where_its_two_reads_agree(seed):
    rng = np.random.default_rng(seed)
    before, after = rng.uniform(1, 1 + 2 * CHANGED, (2, 200))
    expected = [abs(a - b) <= CHANGED * min(a, b) for a, b in zip(before.tolist(), after.tolist(), strict=True)]
    assert unchanged(before, after).tolist() == expected
    assert 0 < sum(expected) < 200


@pytest.mark.parametrize("seed", range(5))
def test_two_states_are_told_apart_in_any_order(seed):
    rng = np.random.default_rng(seed)
    is_fast = rng.permutation(np.arange(100) < rng.integers(20, 80))
    rates = np.where(is_fast, 60e9, 35e9) * rng.uniform(0.95, 1.05, 100)
    slow, fast = states(rates)
    assert np.array_equal(fast, is_fast)
    assert np.array_equal(slow, ~is_fast)


def test_noise_is_one_state_and_nothing_is_none():
    rates = 35e9 * np.random.default_rng(0).uniform(1, APART - 0.01, 100)
    (mask,) = states(rates)
    assert mask.all()
    assert states(np.zeros(0)) == []
