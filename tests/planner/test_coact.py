"""Co-activation: swaps end in a local optimum, planted pairs are parted, the shrinkage is chosen inside."""

from itertools import combinations

import numpy as np
import pytest

from moelab.planner import coact
from moelab.planner.coactivation_split import split_by_coactivation
from moelab.planner.inner_split import inner_split
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import node_problem
from tests.seeded_traces import seeded_trace, trace_of_sets


def pairs_on_one_node(steps, node):
    total = 0
    for a, b, layer in zip(steps.offsets, steps.offsets[1:], steps.layer, strict=False):
        for e, f in combinations(steps.keys[a:b] % steps.num_experts, 2):
            total += node[layer, e] == node[layer, f]
    return total


@pytest.mark.parametrize("nodes", [2, 3])
def test_no_swap_of_two_experts_makes_it_better(nodes):
    trace = seeded_trace(6, num_requests=4)
    problem = node_problem(trace, nodes=nodes, held_out=0)
    node = split_by_coactivation(problem, problem.train, 0.0)
    best = pairs_on_one_node(problem.train, node)
    for layer, (e, f) in ((layer, pair) for layer in range(3) for pair in combinations(range(12), 2)):
        tried = node.copy()
        tried[layer, [e, f]] = node[layer, [f, e]]
        assert pairs_on_one_node(problem.train, tried) >= best
    assert (np.stack([np.bincount(row, minlength=nodes) for row in node]) == 12 // nodes).all()


def test_planted_pairs_are_parted():
    rng = np.random.default_rng(0)
    sets = [[2 * pair, 2 * pair + 1] for pair in rng.integers(0, 4, 200).tolist()]
    problem = node_problem(trace_of_sets(sets, num_experts=8), nodes=2, held_out=0, steps="token")
    node = split_by_coactivation(problem, problem.train, 0.0)[0]
    assert (node[::2] != node[1::2]).all()


def test_inner_split_keeps_requests_whole():
    steps = LayerSteps.of_trace(seeded_trace(1, num_requests=9), "step")
    fitted, judged = inner_split(steps, 0)
    assert len(np.unique(judged.cluster)) == 3
    assert not set(fitted.cluster) & set(judged.cluster)
    assert fitted.num_layer_steps + judged.num_layer_steps == steps.num_layer_steps
    one = LayerSteps.of_trace(seeded_trace(1, num_requests=1), "step")
    fitted, judged = inner_split(one, 0)
    assert fitted.num_layer_steps + judged.num_layer_steps == one.num_layer_steps
    assert judged.num_layer_steps == pytest.approx(one.num_layer_steps / 3, abs=3)


def test_plan_says_what_it_chose_and_never_looks_at_the_held_out_requests():
    trace = seeded_trace(2, num_requests=8)
    plan = coact(trace, nodes=2, extra_memory=0.1, held_out=0.25, seed=1)
    judged = plan.planner["judged_mean_max_of_shrink"]
    assert plan.planner["shrink"] == float(min(judged, key=judged.get))
    held = np.isin(trace.tokens.request, plan.planner["held_out_requests"])
    other = trace.experts.copy()
    other[held] = (other[held] + 5) % 12
    changed = type(trace)(trace.header, other, trace.gate_weights, trace.tokens)
    again = coact(changed, nodes=2, extra_memory=0.1, held_out=0.25, seed=1)
    assert again.placements == plan.placements
    assert again.prediction["heldout_mean_max"] != plan.prediction["heldout_mean_max"]
    with pytest.raises(ValueError, match="shrink is 2"):
        coact(trace, shrink=2)
