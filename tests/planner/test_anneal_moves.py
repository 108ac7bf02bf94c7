"""Annealing: the change it claims is the objective's, budgets hold after every move, tiny optima are found."""

from itertools import combinations, product

import numpy as np
import pytest

from moelab.planner import annealing
from moelab.planner.annealing import annealed
from moelab.planner.distinct_steps import distinct_steps
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import node_problem
from moelab.planner.random_nodes import dealt_out
from moelab.planner.step_maximum import step_maxima
from tests.planner.naive_nodes import sum_of_maxima
from tests.seeded_traces import seeded_trace, trace_of_sets


@pytest.mark.parametrize(
    "options",
    [
        {"nodes": 2},
        {"nodes": 2, "extra_memory": 0.25},
        {"nodes": 2, "extra_memory": 0.3, "node_rates": [2.0, 1.0]},
        {"nodes": 3, "extra_memory": 0.5},
        {"nodes": 4, "extra_memory": 0.4, "node_rates": [1.0, 1.0, 2.0, 1.5]},
        {"nodes": 2, "extra_memory": 0.2, "expert_bytes": [1000, 1500, 700]},
    ],
    ids=str,
)
def test_better_within_budgets_and_as_the_twin_counts(options):
    trace = seeded_trace(4, num_requests=3, skew=1.5)
    problem = node_problem(trace, held_out=0, **options)
    start = dealt_out(problem, 7)
    masks = annealed(problem, problem.train, start, moves_per_expert=200)
    assert (problem.room(masks) >= 0).all()
    assert ((masks > 0) & (masks < 1 << problem.num_nodes)).all()
    weight = problem.layer_weight[problem.train.layer]
    before = (weight * step_maxima(problem.train, start, problem.times)).sum()
    after = (weight * step_maxima(problem.train, masks, problem.times)).sum()
    assert after < 0.97 * before
    if np.ptp(problem.layer_weight) == 0:
        assert after == pytest.approx(sum_of_maxima(trace, "step", masks, problem.times))
    again = annealed(problem, problem.train, start, moves_per_expert=200)
    assert (again == masks).all()
    assert (annealed(problem, problem.train, start, moves_per_expert=200, seed=1) != masks).any()


@pytest.mark.parametrize("seed", range(5))
def test_optimum_of_small_partitions(seed):
    """Eight experts over two nodes, four each: all 70 partitions."""
    rng = np.random.default_rng(seed)
    sets = [rng.permutation(8)[:4].tolist() for _ in range(30)]
    trace = trace_of_sets(sets, num_experts=8)
    problem = node_problem(trace, nodes=2, held_out=0, steps="token")
    best = min(
        step_maxima(problem.train, np.where(np.isin(np.arange(8), group), 1, 2)[None], problem.times).sum()
        for group in combinations(range(8), 4)
    )
    masks = annealed(problem, problem.train, dealt_out(problem, 0), moves_per_expert=2000)
    assert step_maxima(problem.train, masks, problem.times).sum() == best


@pytest.mark.parametrize("seed", range(3))
def test_optimum_with_replicas(seed):
    """Six experts, two copies to spare: every placement that fits."""
    rng = np.random.default_rng(seed)
    trace = trace_of_sets([rng.permutation(6)[:3].tolist() for _ in range(25)], num_experts=6)
    problem = node_problem(trace, nodes=2, extra_memory=1 / 3, held_out=0, steps="token")
    best = min(
        step_maxima(problem.train, np.array([masks]), problem.times).sum()
        for masks in product((1, 2, 3), repeat=6)
        if (problem.room(np.array([masks])) >= 0).all()
    )
    masks = annealed(problem, problem.train, dealt_out(problem, 0), moves_per_expert=3000)
    assert step_maxima(problem.train, masks, problem.times).sum() == best


def test_memory_flows_to_the_layer_that_needs_it():
    """Layer 0 uses expert 0 and 1 or 2 and 3, which a partition separates; layer 1 any two: only copies help there."""
    rng = np.random.default_rng(0)
    sets = []
    for _ in range(80):
        sets.append([0, 1] if rng.random() < 0.5 else [2, 3])
        sets.append(rng.permutation(4)[:2].tolist())
    trace = trace_of_sets(sets, num_experts=4, num_layers=2)
    problem = node_problem(trace, nodes=2, extra_memory=0.25, held_out=0, steps="token")
    start = np.array([[3, 3, 1, 2], [1, 1, 2, 2]])  # both copies in the wrong layer
    assert problem.used(start).tolist() == problem.budget.tolist()
    masks = annealed(problem, problem.train, start, moves_per_expert=500)
    assert np.bitwise_count(masks).sum(1).tolist() == [4, 6]
    assert problem.used(masks).tolist() == problem.budget.tolist()


@pytest.mark.parametrize(
    "options",
    [{"nodes": 2}, {"nodes": 3}, {"nodes": 2, "expert_bytes": [1000, 1500, 700], "node_rates": [2.0, 1.0]}],
    ids=str,
)
@pytest.mark.parametrize("worth", [0.0, 0.03])
def test_as_if_every_layer_step_were_looked_at(monkeypatch, options, worth):
    """Distinct sets with their counts, and all of them one by one: the same moves are taken."""
    trace = seeded_trace(6, num_experts=6, top_k=2, decode_tokens=40, skew=1.0)
    problem = node_problem(trace, held_out=0, extra_memory=0.5, **options)
    assert distinct_steps(problem.train)[0].num_layer_steps < 0.7 * problem.train.num_layer_steps
    start = dealt_out(problem, 2)
    cold = {"moves_per_expert": 40, "worth": worth, "hot": 1e-9, "cold": 1e-9}  # nothing hangs on the rounding of sums
    masks = annealed(problem, problem.train, start, **cold)
    monkeypatch.setattr(annealing, "distinct_steps", lambda steps: (steps, np.ones(steps.num_layer_steps)))
    assert (annealed(problem, problem.train, start, **cold) == masks).all()


def test_only_one_layer_changes_where_asked():
    trace = seeded_trace(1)
    problem = node_problem(trace, nodes=2, extra_memory=0.2, held_out=0)
    start = dealt_out(problem, 0)
    masks = annealed(problem, problem.train, start, moves_per_expert=300, only_layer=1)
    assert (masks[[0, 2]] == start[[0, 2]]).all()
    assert (masks[1] != start[1]).any()


def test_wide_unions():
    """Batches: more experts in a step than a token has."""
    trace = seeded_trace(5, batch=4, num_requests=8, num_experts=24, top_k=4)
    steps = LayerSteps.of_trace(trace, "step")
    assert steps.sizes.max() > 8
    problem = node_problem(trace, nodes=2, held_out=0)
    start = dealt_out(problem, 0)
    masks = annealed(problem, problem.train, start, moves_per_expert=200)
    after = step_maxima(problem.train, masks, problem.times).sum()
    assert after < step_maxima(problem.train, start, problem.times).sum()
    assert after == pytest.approx(
        sum(max((masks.ravel()[steps.keys[a:b]] == m).sum() for m in (1, 2))
            for a, b in zip(steps.offsets, steps.offsets[1:], strict=False))
    )  # fmt: skip


def test_copies_without_gain_go_to_the_hottest():
    """Experts 0 and 1 on two nodes are perfect; of the others, which are used alone, the hottest deserves the copy."""
    sets = [[0, 1]] * 5 + [[2]] * 3 + [[3]] * 20 + [[4]] * 2 + [[5]]
    problem = node_problem(trace_of_sets(sets, num_experts=6), nodes=2, extra_memory=1 / 3, held_out=0, steps="token")
    start = np.array([[1, 2, 3, 1, 3, 2]])
    masks = annealed(problem, problem.train, start, moves_per_expert=500, worth=0.02)
    assert sorted(np.flatnonzero(masks[0] == 3).tolist()) in ([0, 3], [1, 3])
    assert step_maxima(problem.train, masks, problem.times).sum() == len(sets)
