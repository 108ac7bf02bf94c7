"""Layer-steps against sets in Python; tokens or recorded steps; clusters; splits; inverted lists; refusals."""

import numpy as np
import pytest

from moelab.planner.layer_steps import LayerSteps
from moelab.planner.static_plan import split
from tests.planner import naive_nodes
from tests.seeded_traces import seeded_trace


@pytest.mark.parametrize("steps", ["step", "token"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sets_are_the_trace_s(steps, seed):
    trace = seeded_trace(seed, batch=2, unrouted=0.3, num_requests=5)
    got = LayerSteps.of_trace(trace, steps)
    expected = naive_nodes.layer_steps(trace, steps)
    sets = [got.keys[a:b].tolist() for a, b in zip(got.offsets, got.offsets[1:], strict=False)]
    assert [[12 * layer + e for e in sorted(inside)] for (layer, _), inside in expected.items()] == sets
    assert got.layer.tolist() == [layer for layer, _ in expected]
    for layer, expert in np.ndindex(3, 12):
        assert got.uses[layer, expert] == sum(at == layer and expert in s for (at, _), s in expected.items())
    first, uses = got.inverted
    for key in range(36):
        assert uses[first[key] : first[key + 1]].tolist() == [i for i, inside in enumerate(sets) if key in inside]


def test_requests_that_share_steps_are_one_cluster():
    """Two and two decode together, the fifth alone: three clusters of steps, five of tokens."""
    trace = seeded_trace(0, batch=2, num_requests=5)
    together = LayerSteps.of_trace(trace, "step")
    assert together.num_clusters == 3
    of_step = dict(zip(np.unique(trace.tokens.step).tolist(), together.cluster[together.layer == 0], strict=True))
    assert [of_step[int(s)] for s in trace.tokens.step] == (trace.tokens.request // 2).tolist()
    alone = LayerSteps.of_trace(trace, "token")
    assert alone.num_clusters == 5
    assert alone.cluster[alone.layer == 0].tolist() == trace.tokens.request.tolist()


def test_take_keeps_the_sets():
    steps = LayerSteps.of_trace(seeded_trace(3), "step")
    chosen = np.random.default_rng(0).random(steps.num_layer_steps) < 0.4
    part = steps.take(chosen)
    for new, old in enumerate(np.flatnonzero(chosen)):
        mine = part.keys[part.offsets[new] : part.offsets[new + 1]]
        assert mine.tolist() == steps.keys[steps.offsets[old] : steps.offsets[old + 1]].tolist()
    assert part.cluster.tolist() == steps.cluster[chosen].tolist()
    assert steps.take(np.zeros(steps.num_layer_steps, bool)).num_layer_steps == 0


def test_refusals():
    trace = seeded_trace(0)
    with pytest.raises(ValueError, match="expected step"):
        LayerSteps.of_trace(trace, "batch")
    with pytest.raises(ValueError, match="no tokens to plan on"):
        LayerSteps.of_trace(trace.take(np.zeros(trace.num_tokens, bool)), "step")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_step_is_cut_by_the_split(seed):
    """Batches of two: whole ones on either side; as tokens their own, requests are free to part."""
    trace = seeded_trace(seed, batch=2, num_requests=8)
    planning, scored, how = split(trace, held_out=0.5, seed=seed)
    assert (how["split"], how["num_groups_of_requests"]) == ("request", 4)
    assert not set(planning.tokens.step.tolist()) & set(scored.tokens.step.tolist())
    assert planning.num_tokens + scored.num_tokens == trace.num_tokens
    assert len(how["held_out_requests"]) == 4
    alone = split(trace, held_out=0.125, seed=seed, steps="token")[2]
    assert len(alone["held_out_requests"]) == 1


def test_one_batch_of_all_requests_is_cut_in_time():
    trace = seeded_trace(0, batch=6, num_requests=6)
    planning, scored, how = split(trace, held_out=0.25, seed=0)
    assert how == {"split": "time", "num_requests": 6}
    assert planning.tokens.step.max() < scored.tokens.step.min()
    whole = {step: set(trace.tokens.request[trace.tokens.step == step].tolist()) for step in scored.tokens.step}
    for step, requests in whole.items():
        assert set(scored.tokens.request[scored.tokens.step == step].tolist()) == requests
