"""Which steps are compared with their reads, when a row has two states: synthetic rates, answers known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from moelab.bench.memory_states import beside_reads, pair_steps, states_of


def test_a_step_takes_the_mean_time_of_its_two_reads():
    """Reads of 40 and 44 GB/s: 1 GB takes 1/40 and 1/44 s, in the mean 0.023864 s, 41.905 GB/s."""
    steps = pair_steps(np.array([40.0, 44.0]), np.array([0, 0]))
    assert steps.kept.tolist() == [True]
    assert steps.reference[0] == pytest.approx(1 / ((1 / 40 + 1 / 44) / 2))


@pytest.mark.parametrize(("rates", "choices", "kept"), [
    ([60, 60, 33, 33, 60], [0, 0, 0, 0, 0], [True, False, True, False]),  # a flip lies within a step
    ([60, 60, 33, 34, 61], [0, 0, 1, 1, 0], [True, False, True, False]),
    ([40, 41, 41, 42], [0, 0, 1, 1], [True, False, True]),  # equal rates, other loops
    ([40, 46, 53, 62], [0, 0, 0, 0], [True, False, False]),  # 15.0, 15.2, 17.0%
])  # fmt: skip
def test_steps_between_unequal_reads_are_left_out(rates, choices, kept):
    steps = pair_steps(np.array(rates, float), np.array(choices))
    assert steps.kept.tolist() == kept
    assert steps.num_left_out == kept.count(False)
    assert len(steps.reference) == kept.count(True)


@pytest.mark.parametrize("seed", range(20))
def test_two_states_are_told_apart_whatever_their_order(seed):
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat([0, 1], rng.integers(3, 60, 2)))
    rates = np.where(truth, 61.0, 34.0) * rng.normal(1, 0.03, len(truth))
    assert states_of(rates).tolist() == truth.tolist()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["narrow", "wide", "even", "one stray", "few"])
def test_one_state_or_no_clear_two_are_not_split(kind, seed):
    rng = np.random.default_rng(seed)
    rates = {
        "narrow": rng.normal(35, 1, 80),
        "wide": 40 * np.exp(rng.normal(0, 0.4, 80)),  # others' processes
        "even": rng.uniform(20, 65, 200),
        "one stray": np.append(rng.normal(60, 1, 50), 30),
        "few": np.array([34, 34, 61, 61, 61]),
    }[kind]
    assert states_of(rates) is None


def test_a_row_gives_the_whole_and_each_state():
    """Kernel at 95% in the slow state and 90% in the fast one; what happened at the flips reaches no figure."""
    reads = np.array([34.0] * 6 + [62.0] * 9 + [34.0] * 5)
    rates = np.where(reads[1:] == 34, 0.95 * 34, 0.90 * 62)
    rates[reads[1:] != reads[:-1]] = 1e6
    row = beside_reads(pair_steps(reads, np.zeros(20, int)), rates)
    assert row["num_left_out"] == 2
    assert row["num_steps_per_state"] == (9, 8)
    assert row["percent_of_read_limit_per_state"] == pytest.approx((95, 90))
    assert row["read_limit_gb_per_s_per_state"] == pytest.approx((34, 62))
    assert np.ravel(row["percent_quartiles_per_state"]) == pytest.approx([95, 95, 90, 90])
    assert row["percent_of_read_limit"] == pytest.approx(95)  # 9 of 17
    assert row["read_limit_gb_per_s"] == pytest.approx(34)


def test_a_row_in_one_state_has_no_states_and_one_without_steps_no_percent():
    row = beside_reads(pair_steps(np.full(9, 34.0), np.zeros(9, int)), np.full(8, 17.0))
    assert row["percent_of_read_limit"] == pytest.approx(50)
    assert "percent_of_read_limit_per_state" not in row
    row = beside_reads(pair_steps(np.array([34.0, 62.0, 34.0]), np.zeros(3, int)), np.full(2, 17.0))
    assert row["percent_of_read_limit"] is None
    assert row["num_left_out"] == 2
