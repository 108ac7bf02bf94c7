"""Greedy changes: each is the best at its time (naive twin), budgets by tier, unequal layers, fast tiers, cuts."""

import numpy as np
import pytest

from moelab.planner.balanced_packing import balanced_packing
from moelab.planner.node_problem import node_problem
from moelab.planner.replica_gains import add_replicas, cut_experts, promote_to_fast
from moelab.planner.step_maximum import CUT, step_maxima
from tests.seeded_traces import seeded_trace, trace_of_sets


def objective(problem, masks):
    return (problem.layer_weight[problem.train.layer] * step_maxima(problem.train, masks, problem.times)).sum()


def greedy(problem, masks, room):
    """The plain algorithm: all gains anew after every change."""
    masks, room = masks.copy(), room.copy()
    while True:
        best, choice = 1e-12, None
        for layer, expert in np.ndindex(*masks.shape):
            for tier in range(problem.num_nodes):
                size = problem.tier_bytes[tier, layer]
                if masks[layer, expert] >> tier & 1 or room[tier] < size:
                    continue
                tried = masks.copy()
                tried[layer, expert] |= 1 << tier
                gain = (objective(problem, masks) - objective(problem, tried)) / size
                if gain > best + 1e-12:
                    best, choice = gain, (tried, tier, size)
        if choice is None:
            return masks
        masks, (_, tier, size) = choice[0], choice
        room[tier] -= size


@pytest.mark.parametrize("seed", range(4))
def test_lazy_is_nearly_the_plain_greedy(seed):
    """Stale gains may be too low where gains grow, so the twin may be a little better or worse, never by much."""
    trace = seeded_trace(seed, num_layers=2, num_experts=8, top_k=3, num_requests=2)
    problem = node_problem(trace, nodes=2, extra_memory=0.4, held_out=0)
    start = 1 << balanced_packing(problem.train.uses, 2)
    lazy = add_replicas(problem, start, problem.room(start))
    plain = greedy(problem, start, problem.room(start))
    assert (problem.room(lazy) >= 0).all()
    gained = objective(problem, start) - objective(problem, lazy)
    assert gained == pytest.approx(objective(problem, start) - objective(problem, plain), rel=0.1)
    assert gained > 0


def test_first_copy_goes_where_it_gains_most():
    """Experts 0 and 1 share node 0 and are always together: a copy of either halves every step."""
    trace = trace_of_sets([[0, 1], [0, 1], [0, 1], [2, 3], [0, 2]], num_experts=4)
    problem = node_problem(trace, nodes=2, extra_memory=0.5, held_out=0, steps="token")
    start = np.array([[1, 1, 2, 2]])
    masks = add_replicas(problem, start, np.array([0, 1000]))
    assert masks.tolist() in ([[3, 1, 2, 2]], [[1, 3, 2, 2]])
    assert add_replicas(problem, start, np.array([0, 0])).tolist() == start.tolist()


def test_bytes_decide_between_layers():
    """A copy in layer 0 gains five times as much, but takes ten times the bytes; the rest goes to any copy."""
    sets = [[0, 1], [0, 1]] * 4 + [[0], [0, 1]] * 4
    trace = trace_of_sets(sets, num_experts=2, num_layers=2)
    problem = node_problem(
        trace, nodes=2, held_out=0, steps="token", expert_bytes=[1000, 100], node_bytes=[2200, 2200]
    )  # fmt: skip
    start = np.array([[1, 1], [1, 1]])
    assert np.bitwise_count(add_replicas(problem, start, np.array([0, 500]))).sum(1).tolist() == [2, 4]
    assert np.bitwise_count(add_replicas(problem, start, np.array([0, 1000]))).sum(1).tolist() == [2, 4]
    assert np.bitwise_count(add_replicas(problem, start, np.array([0, 1100]))).sum(1).tolist() == [3, 3]


def test_promotion_prefers_what_unbalances():
    """Expert 4 is hottest but alone on its steps with one more; 0 and 1 collide on node 0."""
    sets = [[0, 1]] * 6 + [[2, 4]] * 4 + [[3, 4]] * 4
    trace = trace_of_sets(sets, num_experts=5)
    problem = node_problem(trace, nodes=2, held_out=0, steps="token", fast_slots=[1, 1])
    start = np.array([[1, 1, 2, 2, 1]])
    room = problem.room(start)
    room[3] = 0
    masks = promote_to_fast(problem, start, room)
    assert np.flatnonzero(masks[0] == 4).tolist() in ([0], [1])
    both = promote_to_fast(problem, start, problem.room(start))
    assert sorted(both[0][both[0] > 3].tolist()) == [4, 8]


def test_cuts_stop_at_their_number_and_only_where_they_gain():
    trace = seeded_trace(0, num_layers=2, num_experts=8, top_k=3, num_requests=3)
    problem = node_problem(trace, nodes=2, held_out=0)
    start = 1 << balanced_packing(problem.train.uses, 2)
    values = []
    for most in (0, 1, 3, 6):
        masks = cut_experts(problem, start, most)
        assert (masks == CUT).sum() == most
        values.append(objective(problem, masks))
    assert values == sorted(values, reverse=True)
    assert values[0] == objective(problem, start)
    mirrored = np.full((2, 8), 3)
    assert (cut_experts(problem, mirrored, 5) == mirrored).all()
