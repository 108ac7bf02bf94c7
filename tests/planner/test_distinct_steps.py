"""Distinct layer-steps: each set once with its count, by a naive twin; what a placement costs stays the same."""

from collections import Counter

import numpy as np
import pytest

from moelab.planner import distinct_steps as module
from moelab.planner.distinct_steps import distinct_steps
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import node_problem
from moelab.planner.random_nodes import dealt_out
from moelab.planner.step_maximum import step_maxima
from tests.seeded_traces import seeded_trace, trace_of_sets


def sets_of(steps: LayerSteps) -> list[tuple[int, ...]]:
    return [tuple(steps.keys[a:b].tolist()) for a, b in zip(steps.offsets, steps.offsets[1:], strict=False)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{"num_experts": 6, "top_k": 2}, {"num_experts": 7, "top_k": 3, "batch": 3}])
def test_as_the_naive_twin_counts(seed, options):
    steps = LayerSteps.of_trace(seeded_trace(seed, num_requests=6, skew=1.5, **options), "step")
    once, often = distinct_steps(steps)
    counted = Counter(sets_of(steps))
    assert len(counted) < steps.num_layer_steps
    assert sets_of(once) == list(counted)  # a Counter keeps the order of first appearance
    assert often.tolist() == list(counted.values())


@pytest.mark.parametrize("options", [{"nodes": 2}, {"nodes": 3, "node_rates": [1.0, 2.0, 1.5]}], ids=str)
def test_a_placement_costs_the_same(options):
    problem = node_problem(
        seeded_trace(3, num_experts=8, top_k=2, skew=1.0), extra_memory=0.25, held_out=0, **options
    )  # fmt: skip
    once, often = distinct_steps(problem.train)
    masks = dealt_out(problem, 5)
    whole = step_maxima(problem.train, masks, problem.times).sum()
    assert (often * step_maxima(once, masks, problem.times)).sum() == pytest.approx(whole)


def test_nothing_twice_is_nothing_new():
    trace = trace_of_sets([[0, 1], [1, 2], [0, 2]], num_experts=3)
    steps = LayerSteps.of_trace(trace, "token")
    once, often = distinct_steps(steps)
    assert once is steps
    assert often.tolist() == [1, 1, 1]


def test_a_hash_that_always_collides_loses_nothing(monkeypatch):
    monkeypatch.setattr(module, "ODD", np.uint64(0))
    steps = LayerSteps.of_trace(seeded_trace(1, num_experts=6, top_k=2), "token")
    once, often = distinct_steps(steps)
    assert often.sum() == steps.num_layer_steps
    kept = Counter()
    for experts, count in zip(sets_of(once), often.tolist(), strict=True):
        kept[experts] += count
    assert kept == Counter(sets_of(steps))
