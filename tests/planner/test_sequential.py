"""sequential: the hottest experts stay on the fast tiers; the nodes of the rest, beside every partition tried."""

from itertools import combinations

import numpy as np
import pytest

from moelab.planner import PLANNERS, sequential
from moelab.planner.node_problem import node_problem
from tests.planner.naive_nodes import layer_steps, sum_of_maxima
from tests.planner.node_plans import masks_of
from tests.seeded_traces import seeded_trace, trace_of_sets


def hottest(trace, num):
    """{(layer, expert)}: those that most layer-steps use, counted one by one."""
    uses = np.zeros((trace.header.num_layers, trace.header.num_experts))
    for (layer, _), inside in layer_steps(trace, "step").items():
        for expert in inside:
            uses[layer, expert] += 1
    order = np.argsort(-uses, axis=None, kind="stable")[:num]
    return {tuple(divmod(int(key), trace.header.num_experts)) for key in order}


@pytest.mark.parametrize("seed", range(4))
def test_optimum_around_the_hottest(seed):
    """Ten experts, the two hottest on the fast tier: all 70 ways to part the other eight over two nodes."""
    rng = np.random.default_rng(seed)
    worth = rng.normal(size=10)
    trace = trace_of_sets(
        [np.argsort(worth + rng.gumbel(size=10))[:5].tolist() for _ in range(60)], num_experts=10
    )  # fmt: skip
    plan = sequential(trace, fast_slots=2, nodes=2, held_out=0, moves_per_expert=2000)
    masks = masks_of(plan)
    chosen = {(0, int(expert)) for expert in np.flatnonzero(masks[0] == 4)}
    assert chosen == hottest(trace, 2)
    times = node_problem(trace, nodes=2, fast_slots=[2], held_out=0).times
    rest = [expert for expert in range(10) if (0, expert) not in chosen]
    best = np.inf
    for group in combinations(rest, 4):
        each = np.where(np.isin(np.arange(10), group), 1, 2)
        each[[expert for _, expert in chosen]] = 4
        best = min(best, sum_of_maxima(trace, "step", each[None], times))
    assert plan.prediction["train_mean_max"] == pytest.approx(best / 60)


@pytest.mark.parametrize(("slots", "keep_home"), [([9], True), ([6, 4], True), ([9], False)])
def test_fast_tiers_keep_the_hottest_and_joint_is_never_behind_in_sample(slots, keep_home):
    trace = seeded_trace(8, num_requests=12, num_experts=16, top_k=4, decode_tokens=40)
    options = {
        "fast_slots": slots, "nodes": 2, "extra_memory": 0.1, "held_out": 0, "keep_home": keep_home,
        "moves_per_expert": 150,
    }  # fmt: skip
    plan = sequential(trace, **options)
    masks = masks_of(plan)
    assert {(int(layer), int(expert)) for layer, expert in np.argwhere(masks >= 4)} == hottest(trace, sum(slots))
    assert [int((masks == 4 << fast).sum()) for fast in range(len(slots))] == slots
    assert plan.keep_home == keep_home
    assert sum(plan.prediction["bytes_per_node"]) <= 1.1 * 48_000
    uses = sum(len(inside) for inside in layer_steps(trace, "step").values())
    on_fast = sum(
        masks[layer, expert] >= 4 for (layer, _), inside in layer_steps(trace, "step").items() for expert in inside
    )
    assert plan.prediction["hit_rate_per_request"] == pytest.approx(on_fast / uses)
    joint = PLANNERS["joint"](trace, **options).prediction
    assert (
        joint["sequential_train_mean_max"] == plan.prediction["train_mean_max"] < joint["hottest_first_train_mean_max"]
    )
    assert joint["train_mean_max"] <= joint["sequential_train_mean_max"]
    assert (masks_of(sequential(trace, **options)) == masks).all()


def test_impossible_slots():
    with pytest.raises(ValueError, match="fast_slots are"):
        sequential(seeded_trace(8), fast_slots=[20, 17])
