"""joint: what goes to the fast tier and which copies nodes keep, beside the hottest first and its bound."""

import numpy as np
import pytest

from moelab.domain.machine import FastTierDevice, Machine, NumaNode
from moelab.planner import PLANNERS
from moelab.planner.node_plan import bound
from moelab.planner.node_problem import node_problem
from moelab.planner.node_score import node_score
from tests.seeded_traces import seeded_trace


@pytest.mark.parametrize(("slots", "keep_home"), [([9], True), ([6, 4], True), ([9], False)])
def test_joint_beats_the_hottest_first(slots, keep_home):
    trace = seeded_trace(8, num_requests=12, num_experts=16, top_k=4, decode_tokens=40)
    plan = PLANNERS["joint"](
        trace, fast_slots=slots, nodes=2, extra_memory=0.1, held_out=0.5, keep_home=keep_home, moves_per_expert=150
    )  # fmt: skip
    says = plan.prediction
    assert says["train_mean_max"] < says["hottest_first_train_mean_max"]
    assert says["heldout_mean_max"] < 1.03 * says["hottest_first_mean_max"]  # few requests: near enough
    assert says["hit_rate_per_request"] <= says["hottest_first_hit_rate"] + 0.02
    columns = plan.placements.arrays()
    count = np.bincount(columns["tier"], minlength=2 + len(slots))
    assert count[2:].tolist() == [fast.slots for fast in plan.fast_tiers]
    assert all(0.7 * most <= held <= most for held, most in zip(count[2:], slots, strict=True))
    assert plan.keep_home == keep_home
    homes = np.zeros((3, 16), bool)
    on_node = columns["tier"] < 2
    homes[columns["layer"][on_node], columns["expert"][on_node]] = True
    assert homes.all() == keep_home
    if keep_home:
        assert sum(says["bytes_per_node"]) <= 1.1 * 48_000
    assert says["bytes_per_node"] == [1000 * count[0], 1000 * count[1]]
    assert says["bytes_per_fast_tier"] == (1000 * count[2:]).tolist()
    assert says["copies_per_fast_tier"] == count[2:].tolist()
    assert len(says["copies_per_node"]) == 2
    assert says["extra_memory_bytes"] == 1000 * count[:2].sum() - 48_000  # a fast tier's copies are no extra memory
    assert says["extra_memory_bytes"] == pytest.approx(48_000 * says["extra_memory_used"])
    with pytest.raises(ValueError, match="fast_slots are"):
        PLANNERS["joint"](trace, fast_slots=[49])


@pytest.mark.parametrize("expert_bytes", [None, (1000, 3000, 2000)])
@pytest.mark.parametrize("seed", range(4))
def test_no_choice_for_the_fast_tier_goes_below_the_bound(seed, expert_bytes):
    """Sets that fill it with cold, random and the scored steps' own hottest experts, everything else everywhere."""
    trace = seeded_trace(seed, num_requests=8, num_experts=8, top_k=4, expert_bytes=expert_bytes)
    options = {"nodes": 2, "extra_memory": 1.0, "held_out": 0.5}
    says = PLANNERS["joint"](trace, fast_slots=[9], moves_per_expert=100, **options).prediction
    problem = node_problem(trace, fast_slots=[9], **options)
    assert says["gap"] == pytest.approx(says["heldout_mean_max"] / says["bound"] - 1)
    assert "fast tiers" in says["bound_of"]
    size = np.repeat(problem.tier_bytes[0], 8)
    uses = problem.test.uses.ravel()
    rng = np.random.default_rng(seed)
    means = [says["heldout_mean_max"]]
    for order in (
        np.argsort(-uses),
        np.argsort(-uses * size),
        np.argsort(uses),
        *(rng.permutation(24) for _ in range(5)),
    ):
        room, masks = int(problem.budget[2]), np.full(24, 0b11)
        for key in order:
            if size[key] <= room:
                room -= size[key]
                masks[key] = 0b100
        masks = masks.reshape(problem.shape)
        means.append(node_score(problem.test, masks, problem.times, problem.layer_weight).mean)
        assert bound(problem, masks) == says["bound"]  # whatever the plan's own set
    assert says["bound"] <= min(means) + 1e-12
    if expert_bytes is None:  # equal bytes: uses less those of the nine hottest, over two nodes
        left = np.sort(uses)[:-9].sum()
        assert says["bound"] == pytest.approx(left / 2 / problem.test.num_layer_steps)
        assert min(means) < 1.5 * says["bound"]


def test_a_fast_tier_of_everything_has_no_gap():
    trace = seeded_trace(0, num_experts=8)
    says = PLANNERS["joint"](trace, fast_slots=[24], nodes=2, moves_per_expert=50).prediction
    assert says["bound"] == 0
    assert says["gap"] is None


def test_a_slow_fast_tier_is_not_filled_with_everything():
    """With its rate known, the fast tier is one more server: at a quarter of a node's rate hits must pay."""
    trace = seeded_trace(8, num_requests=6, num_experts=8, top_k=4)
    node = NumaNode(name="node0", cores=(0,), memory_bytes=2**40, read_gb_per_s={1: 100.0})
    fast = FastTierDevice(name="fast0", device="none", memory_bytes=2**40, read_gb_per_s=25.0)
    machine = Machine(name="paper", source="preset", nodes=(node,), fast_tiers=(fast,))
    plan = PLANNERS["joint"](trace, fast_slots=[24], nodes=1, machine=machine, held_out=0, moves_per_expert=300)
    alone = PLANNERS["mirror"](trace, nodes=1, held_out=0).prediction["heldout_mean_max"]
    assert plan.prediction["heldout_mean_max"] < alone
    assert plan.fast_tiers[0].slots < 12
    assert plan.planner["fast_rates"] == "preset of paper"
