"""Packed counts: maxima equal the objective's for random sets, and a move is an addition."""

import numpy as np
import pytest

from moelab.planner.layer_steps import LayerSteps
from moelab.planner.packed_counts import (
    FIELD_OF_TWO,
    NOT_PACKED,
    field_bits,
    hall_maximum,
    hall_tables,
    two_even_maximum,
    two_uneven_maximum,
    unit_of,
)
from moelab.planner.step_maximum import WHOLE, TierTimes, step_maxima
from tests.seeded_traces import trace_of_sets


@pytest.mark.parametrize(("nodes", "largest"), [(3, 7), (3, 200), (4, 15)])
def test_hall_from_packed_counts_is_the_objective(nodes, largest):
    rng = np.random.default_rng(nodes + largest)
    times = TierTimes.equal_nodes(nodes)
    masks = rng.integers(1, 1 << nodes, (1, 220)) & rng.integers(1, 1 << nodes, (1, 220))
    masks[masks == 0] = 1 << nodes - 1
    sets = [rng.permutation(220)[: rng.integers(1, largest + 1)].tolist() for _ in range(60)]
    field = field_bits(masks, times, largest)
    keep, ceil_of = hall_tables(nodes, field)
    expected = step_maxima(LayerSteps.of_trace(trace_of_sets(sets, num_experts=220), "token"), masks, times)
    for inside, maximum in zip(sets, expected, strict=True):
        packed = 0
        for expert in inside:
            packed += int(unit_of(int(masks[0, expert]), field))
        packed = int(np.array(packed % 2**64, np.uint64).view(np.int64))
        assert hall_maximum(packed, field, keep, ceil_of) == maximum


@pytest.mark.parametrize("rates", [(1.0, 1.0), (2.0, 0.5)])
def test_two_tiers(rates):
    rng = np.random.default_rng(1)
    pieces = np.array([WHOLE // 2, WHOLE // 2])
    times = TierTimes(2, 1 / np.array(rates) / WHOLE, pieces)
    masks = rng.integers(0, 4, (1, 40))
    sets = [rng.permutation(40)[: rng.integers(1, 30)].tolist() for _ in range(60)]
    expected = step_maxima(LayerSteps.of_trace(trace_of_sets(sets, num_experts=40), "token"), masks, times)
    for inside, maximum in zip(sets, expected, strict=True):
        packed = sum(int(unit_of(int(masks[0, expert]), FIELD_OF_TWO)) for expert in inside)
        assert two_uneven_maximum(packed, pieces, times.slowness, 0.0) == pytest.approx(maximum)
        if rates == (1.0, 1.0):
            assert two_even_maximum(packed, 0.5) == maximum


def test_what_is_not_packed():
    plain = np.ones((1, 4), np.int64)
    assert field_bits(plain, TierTimes.equal_nodes(2), 300) == FIELD_OF_TWO
    assert field_bits(plain, TierTimes.equal_nodes(3), 255) == 8
    assert field_bits(plain, TierTimes.equal_nodes(4), 15) == 4
    unequal = TierTimes(3, np.array([1.0, 2.0, 1.0]), np.ones(3, np.int64))
    fast = TierTimes(2, np.ones(3), np.array([1, 1, 0]))
    for masks, times, largest in (
        (plain, TierTimes.equal_nodes(3), 256),
        (plain, TierTimes.equal_nodes(4), 16),
        (plain, TierTimes.equal_nodes(5), 2),
        (plain * 0, TierTimes.equal_nodes(3), 2),
        (plain, unequal, 2),
        (plain, fast, 2),
    ):
        assert field_bits(masks, times, largest) == NOT_PACKED
