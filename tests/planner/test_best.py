"""best: chosen inside the planning requests, then the winner's own plan on all of them."""

from dataclasses import replace

import numpy as np
import pytest

from moelab.planner import PLANNERS, best
from moelab.planner.inner_split import inner_split
from moelab.planner.node_plan import masks_of_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.replicate import balanced_with_replicas
from tests.planner.naive_nodes import least_maximum
from tests.seeded_traces import seeded_trace

SHARED = {"nodes": 2, "extra_memory": 0.25, "held_out": 0.5, "seed": 3}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_plan_is_the_winner_s(seed):
    trace = seeded_trace(seed, num_requests=20)
    plan = best(trace, moves_per_expert=100, **SHARED)
    means = plan.planner["judged_mean_max"]
    assert set(means) == {"anneal", "coact", "replicate"}
    assert means[plan.planner["chosen"]] == min(means.values())
    options = {"moves_per_expert": 100} if plan.planner["chosen"] == "anneal" else {}
    alone = PLANNERS[plan.planner["chosen"]](trace, **SHARED, **options)
    assert plan.placements == alone.placements
    assert plan.prediction["heldout_mean_max"] == alone.prediction["heldout_mean_max"]


def test_the_choice_sees_nothing_that_is_held_out():
    """Held-out routing replaced by other routing: the same plan, to the last copy."""
    trace = seeded_trace(4, num_requests=12)
    plan = best(trace, moves_per_expert=50, **SHARED)
    is_held = np.isin(trace.tokens.request, plan.planner["held_out_requests"])
    experts = trace.experts.copy()
    experts[is_held] = (experts[is_held] + 5) % 12
    changed = best(type(trace)(trace.header, experts, trace.gate_weights, trace.tokens), moves_per_expert=50, **SHARED)
    assert changed.planner["judged_mean_max"] == plan.planner["judged_mean_max"]
    assert changed.placements == plan.placements
    assert changed.prediction["heldout_mean_max"] != plan.prediction["heldout_mean_max"]


def test_judged_on_a_third_that_the_candidate_has_not_seen():
    trace = seeded_trace(5, num_requests=12)
    plan = best(trace, candidates=["replicate"], **SHARED)
    problem = node_problem(trace, **SHARED)
    fitted, judged = inner_split(problem.train, 3)
    assert not set(fitted.cluster.tolist()) & set(judged.cluster.tolist())
    masks = balanced_with_replicas(replace(problem, train=fitted))
    code = masks.ravel()
    maxima = [
        least_maximum([code[key] for key in judged.keys[a:b]], problem.times)
        for a, b in zip(judged.offsets, judged.offsets[1:], strict=False)
    ]
    assert plan.planner["judged_mean_max"]["replicate"] == pytest.approx(np.mean(maxima))
    assert (masks_of_plan(plan) == balanced_with_replicas(problem)).all()


def test_refusal():
    with pytest.raises(ValueError, match="expected some of anneal"):
        best(seeded_trace(1), candidates=["eplb"])
