"""frequency: hottest experts, ties, held-out split, scopes, refusals, file round trip."""

import numpy as np
import pytest

from moelab.domain.machine import Machine, NumaNode
from moelab.domain.plan import Plan
from moelab.planner import PLANNERS, frequency
from moelab.planner.frequency import split
from moelab.simulator.simulate import simulate
from tests.seeded_traces import seeded_trace, trace_of_sets


def test_hottest_of_the_planning_requests_only():
    trace = seeded_trace(1, num_requests=8)
    plan = frequency(trace, slots_per_layer=4, held_out=0.5, seed=3)
    test_ids = plan.planner["held_out_requests"]
    assert len(test_ids) == 4
    train = trace.take(~np.isin(trace.tokens.request, test_ids))
    for layer, loads in enumerate(train.loads()):
        hottest = sorted(sorted(range(12), key=lambda e: (-loads[e], e))[:4])
        assert np.flatnonzero(plan.resident("fast0")[layer]).tolist() == hottest
    held = simulate(trace.take(np.isin(trace.tokens.request, test_ids)), plan)
    assert plan.prediction["scored_on"] == "held-out requests"
    assert plan.prediction["hit_rate_per_routing"] == held.hit_rate_per_routing
    assert plan.prediction["reads_per_layer_step"] == held.reads_per_layer_step
    assert plan.prediction["hit_rate_per_routing_in_sample"] == simulate(train, plan).hit_rate_per_routing
    assert plan.policy.name == "static"
    assert plan.keep_home
    assert "held-out requests" in repr(plan)
    assert "hit_rate_per_routing_in_sample" in repr(plan)


def test_ties_go_to_the_lower_id_and_seed_decides_the_split():
    trace = trace_of_sets([[3, 1], [1, 3], [2, 0]], num_experts=4)
    plan = frequency(trace, slots_per_layer=1, held_out=0)
    assert plan.resident("fast0").tolist() == [[False, True, False, False]]
    assert plan.planner["split"] == "none"
    assert plan.prediction["scored_on"] == "the planning requests (in sample)"
    many = seeded_trace(1, num_requests=12)
    chosen = {tuple(frequency(many, slots_per_layer=2, seed=s).planner["held_out_requests"]) for s in range(6)}
    assert len(chosen) > 1
    assert frequency(many, slots_per_layer=2, seed=5) == frequency(many, slots_per_layer=2, seed=5)


def test_global_slots_take_the_hottest_of_all_layers():
    trace = seeded_trace(5)
    plan = frequency(trace, slots=7, held_out=0)
    flat = trace.loads().ravel()
    expected = sorted(range(len(flat)), key=lambda k: (-flat[k], k))[:7]
    assert sorted(np.flatnonzero(plan.resident("fast0")).tolist()) == sorted(expected)
    assert plan.fast_tiers[0].slots == 7


def test_one_request_is_cut_in_time():
    trace = seeded_trace(5, num_requests=1)
    train, test, how = split(trace, held_out=0.25, seed=0)
    assert how["split"] == "time"
    assert train.tokens.step.max() < test.tokens.step.min()
    assert train.num_tokens + test.num_tokens == trace.num_tokens
    plan = frequency(trace, slots_per_layer=3)
    assert plan.prediction["scored_on"] == "held-out steps (split in time)"


def test_other_expert_shape_machine_and_round_trip(tmp_path):
    trace = seeded_trace(5)
    node = NumaNode(name="node0", cores=(0,), memory_bytes=2**30, read_gb_per_s={1: 20.0})
    machine = Machine(name="paper", source="preset", nodes=(node,))
    plan = frequency(
        trace, slots_per_layer=[0, 3, 12], machine=machine, expert_bytes=24_772_608, moe_intermediate_size=2048,
        weight_format="int4-g32", phase="decode",
    )  # fmt: skip
    assert plan.num_units == 64
    assert plan.format_of_tier["fast0"].expert_bytes == (24_772_608,) * 3
    assert plan.prediction["predicted_ms_per_token"] > 0
    assert plan.fingerprints == {"trace": trace.fingerprint(), "machine": machine.fingerprint()}
    assert plan.resident("fast0").sum(1).tolist() == [0, 3, 12]
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert set(PLANNERS) >= {"frequency", "uniform", "random"}


def test_lru_can_start_from_the_same_residents():
    trace = seeded_trace(5)
    plan = frequency(trace, slots_per_layer=4)
    dynamic = plan.model_copy(update={"policy": plan.policy.model_copy(update={"name": "lru"})})
    assert simulate(trace, dynamic).evictions > 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "expected exactly one"),
        ({"slots": 1, "slots_per_layer": 1}, "expected exactly one"),
        ({"slots_per_layer": 13}, "expected at most the 12 experts"),
        ({"slots_per_layer": [1, 2]}, "expected one number or 3 of them"),
        ({"slots": 999}, r"expected 0\.\.36"),
        ({"slots": 1, "held_out": 1.0}, "held_out is 1.0"),
        ({"slots": 1, "phase": "warm"}, "expected prefill or decode"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError, match=text):
        frequency(seeded_trace(1), **arguments)
