"""Batches by hand and by a naive walk: each step has the i-th tokens of a group of requests."""

import numpy as np
import pytest

from moelab.planner import anneal
from moelab.planner.batches import in_batches
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import node_problem
from tests.seeded_traces import seeded_trace


@pytest.mark.parametrize(("batch", "num_requests", "seed"), [(1, 3, 0), (2, 5, 1), (3, 6, 2), (4, 4, 3)])
def test_steps_are_the_ith_tokens_of_a_group(batch, num_requests, seed):
    trace = seeded_trace(seed, num_requests=num_requests, num_layers=2).phase(1)
    lengths = np.random.default_rng(seed).integers(3, 12, num_requests)  # requests end at different tokens
    trace = trace.take(trace.tokens.position - 5 < lengths[trace.tokens.request])
    together = in_batches(trace, batch, seed)
    assert together.num_tokens == trace.num_tokens
    order = np.random.default_rng(seed).permutation(num_requests)
    expected = []
    for first in range(0, num_requests, batch):
        group = order[first : first + batch].tolist()
        expected += [
            {(r, 5 + i) for r in group if i < lengths[r]} for i in range(max(lengths[r] for r in group))
        ]  # fmt: skip
    tokens = together.tokens
    got = [
        set(zip(tokens.request[tokens.step == s].tolist(), tokens.position[tokens.step == s].tolist(), strict=True))
        for s in range(tokens.step.max() + 1)
    ]
    assert got == expected
    at = {(r, p): row.tolist() for r, p, row in zip(trace.tokens.request, trace.tokens.position, trace.experts,
                                                     strict=True)}  # fmt: skip
    assert all(at[r, p] == row.tolist() for r, p, row in zip(tokens.request, tokens.position, together.experts,
                                                              strict=True))  # fmt: skip


def test_a_problem_in_batches_splits_whole_batches():
    trace = seeded_trace(1, num_requests=8)
    problem = node_problem(trace, nodes=2, batch=2, phase="decode", held_out=0.5, seed=3)
    assert problem.how["batch"] == 2
    assert problem.how["num_groups_of_requests"] == 4
    alone = node_problem(trace, nodes=2, phase="decode", held_out=0.5, seed=3)
    assert problem.train.sizes.mean() > alone.train.sizes.mean()
    whole = LayerSteps.of_trace(in_batches(trace.phase(1), 2, 3))
    assert sorted([*problem.train.sizes, *problem.test.sizes]) == sorted(whole.sizes)
    prefill = anneal(trace, nodes=2, batch=4, phase="prefill", steps="token", moves_per_expert=10)
    assert "batches of 4" in prefill.prediction["scored_on"]


def test_refusals():
    trace = seeded_trace(1, num_requests=4)
    with pytest.raises(ValueError, match="expected 1 to the 4 requests"):
        in_batches(trace, 5)
    with pytest.raises(ValueError, match="already in batches"):
        node_problem(seeded_trace(1, num_requests=4, batch=2), nodes=2, batch=2, phase="decode")
