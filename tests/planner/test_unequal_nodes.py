"""Nodes of unequal rates or memory: each gets what it can read, none more than it may hold."""

import numpy as np
import pytest

from moelab.planner import PLANNERS
from moelab.planner.node_problem import node_problem
from moelab.planner.node_score import node_score
from tests.planner.node_plans import QUICK, masks_of
from tests.seeded_traces import seeded_trace


def test_unequal_nodes_get_what_they_can_read():
    trace = seeded_trace(5, num_requests=6, num_experts=12, top_k=4)
    options = {"nodes": 2, "node_rates": [3.0, 1.0], "extra_memory": 0.2, "held_out": 0}
    plan = PLANNERS["anneal"](trace, moves_per_expert=300, **options)
    used = plan.prediction["bytes_per_node"]
    assert used[0] > 2 * used[1]
    even = PLANNERS["round_robin"](trace, nodes=2, held_out=0)
    problem = node_problem(trace, **options)
    theirs = node_score(problem.test, masks_of(even), problem.times, problem.layer_weight).mean
    assert plan.prediction["heldout_mean_max"] < 0.75 * theirs
    given = PLANNERS["replicate"](trace, nodes=2, held_out=0, node_bytes=[30_000, 10_000])
    assert given.prediction["bytes_per_node"][1] <= 10_000


@pytest.mark.parametrize("seed", range(6))
def test_homes_follow_the_rates_within_what_nodes_may_hold(seed):
    """Shares of the homes: in sum one, no more than a budget, and as the rates wherever no budget binds."""
    rng = np.random.default_rng(seed)
    trace = seeded_trace(seed, num_requests=6)
    rates = rng.uniform(1, 4, 3)
    budget = (rng.dirichlet(np.ones(3)) * 60_000 + 12_000).astype(int)
    problem = node_problem(trace, nodes=3, node_rates=rates, node_bytes=budget, held_out=0.5)
    share, most = problem.node_share, budget // 1000 / 36
    assert share.sum() == pytest.approx(1)
    assert (share <= most + 1e-9).all()
    free = share < most - 1e-9
    assert np.ptp((share / rates)[free]) < 1e-9
    assert problem.how["extra_memory"] == pytest.approx(min(budget.sum() / 36_000 - 1, 2))
    for name in ("replicate", "coact"):
        plan = PLANNERS[name](trace, nodes=3, node_rates=rates, node_bytes=budget, held_out=0.5)
        assert (np.array(plan.prediction["bytes_per_node"]) <= budget).all()


@pytest.mark.parametrize("name", ["anneal", "best", "coact", "replicate"])
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_tight_unequal_nodes_and_layers_of_unequal_bytes(name, seed):
    """Layers alternate in bytes; equal shares of each are (seeds 3, 4) too much for a node that has hardly any room."""
    rng = np.random.default_rng(seed)
    sizes = (1300, 100) * 3
    trace = seeded_trace(seed, num_layers=6, num_requests=8, expert_bytes=sizes)
    total = 12 * sum(sizes)
    small = int(total * rng.uniform(0.3, 0.5))
    budget = [total - small + 1300 * 3, small]
    plan = PLANNERS[name](trace, nodes=2, node_bytes=budget, held_out=0.5, **QUICK.get(name, {}))
    assert (np.array(plan.prediction["bytes_per_node"]) <= budget).all()
    assert (masks_of(plan) > 0).all()


def test_mirror_of_unequal_nodes():
    """Everything on both, whatever their rates; what each may hold counts where it is given."""
    trace, rates = seeded_trace(1, num_requests=4), [3.0, 1.0]
    plan = PLANNERS["mirror"](trace, nodes=2, node_rates=rates)
    assert plan.prediction["bytes_per_node"] == [36_000, 36_000]
    assert plan.prediction["extra_memory_used"] == 1
    given = PLANNERS["mirror"](trace, node_rates=rates, node_bytes=[36_000, 36_000], nodes=2)
    assert masks_of(given).tolist() == masks_of(plan).tolist()
    with pytest.raises(ValueError, match="more on node1 than its budget"):
        PLANNERS["mirror"](trace, node_rates=rates, node_bytes=[36_000, 35_000], nodes=2)


@pytest.mark.parametrize("name", ["round_robin", "eplb"])
@pytest.mark.parametrize("rates", [[3.0, 1.0], [1.0, 2.0], [1.0, 1.0]])
def test_baselines_that_know_no_rates_of_unequal_nodes(name, rates):
    """The placement of equal nodes, timed by the slower one; what nodes may hold counts where it is said."""
    trace = seeded_trace(1, num_requests=8)
    extra = {"extra_memory": 0.25} if name == "eplb" else {}
    plan = PLANNERS[name](trace, nodes=2, node_rates=rates, held_out=0.5, **extra)
    equal = PLANNERS[name](trace, nodes=2, held_out=0.5, **extra)
    assert masks_of(plan).tolist() == masks_of(equal).tolist()
    held = equal.prediction["bytes_per_node"]
    assert plan.prediction["bytes_per_node"] == held
    assert (plan.prediction["heldout_mean_max"] > equal.prediction["heldout_mean_max"]) == (rates[0] != rates[1])
    assert plan.prediction["baseline_mean_max"][name] == pytest.approx(plan.prediction["heldout_mean_max"], rel=0.2)
    given = {"nodes": 2, "node_rates": rates, "held_out": 0.5}
    if name == "round_robin":
        PLANNERS[name](trace, node_bytes=held, **given)
        with pytest.raises(ValueError, match="more on node1 than its budget"):
            PLANNERS[name](trace, node_bytes=[held[0] + 9000, held[1] - 1000], **given)
