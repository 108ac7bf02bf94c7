"""EPLB: the example of its README, packing by hand, and what it makes of extra memory."""

import numpy as np
import pytest

from moelab.planner import eplb
from moelab.planner.balanced_packing import balanced_packing
from moelab.planner.eplb_rebalance import rebalance
from tests.seeded_traces import seeded_trace

LOADS = np.array(
    [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
)
PUBLISHED = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]


def test_published_example():
    got = rebalance(LOADS, 16, num_groups=4, num_nodes=2, num_gpus=8)
    assert got.tolist() == PUBLISHED


def test_copies_even_out_the_packs():
    """With twice the copies the fullest pack is nearer to the mean, a copy carrying its part; no expert is missing."""
    spread = []
    for copies in (12, 16, 24):
        got = rebalance(LOADS, copies, num_groups=1, num_nodes=1, num_gpus=4)
        for row, loads in zip(got, LOADS, strict=True):
            count = np.bincount(row, minlength=12)
            assert count.min() >= 1
            packs = (loads / count)[row].reshape(4, -1).sum(1)
            spread.append(packs.max() / packs.mean())
    assert max(spread[4:]) < 1.04 < max(spread[:2])


def test_groups_that_do_not_divide_are_one():
    as_one = rebalance(LOADS, 16, num_groups=1, num_nodes=1, num_gpus=8)
    assert (rebalance(LOADS, 16, num_groups=3, num_nodes=2, num_gpus=8) == as_one).all()


def test_without_copies_it_is_balanced_packing():
    loads = seeded_trace(3, skew=2.0).loads()
    got = rebalance(loads, 12, num_groups=1, num_nodes=1, num_gpus=3)
    node = np.empty_like(loads)
    np.put_along_axis(node, got, np.tile(np.arange(12) // 4, (3, 1)), axis=1)
    assert (node == balanced_packing(loads, 3)).all()


def test_plan_spends_whole_copies_and_says_which_are_useless():
    trace = seeded_trace(1, num_requests=6, skew=3.0)
    plan = eplb(trace, nodes=2, extra_memory=0.25, held_out=0.5)
    assert plan.planner["copies_per_layer"] == 14
    placed = len(plan.placements)
    assert placed + plan.planner["useless_copies"] == 42
    assert plan.prediction["extra_memory_used"] == pytest.approx((placed - 36) / 36)
    with pytest.raises(ValueError, match="do not divide over 5 nodes"):
        eplb(trace, nodes=5)


def test_numbers_that_do_not_divide_go_round():
    node = balanced_packing(np.ones((4, 7)), 2)
    assert np.bincount(node.ravel()).tolist() == [14, 14]
    by_share = balanced_packing(np.ones((3, 12)), 2, share=np.array([2.0, 1.0]))
    assert (np.stack([np.bincount(row, minlength=2) for row in by_share]) == [8, 4]).all()
