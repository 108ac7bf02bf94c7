"""empty: nothing resident, capacity as asked for, what it refuses; and the plans that the command makes of it."""

import pytest

from moelab.execution.planned import plan_for, scored_part
from moelab.planner import empty
from moelab.simulator import simulate
from tests.seeded_traces import seeded_trace

BYTES = (100, 200, 300)


def test_holds_nothing_and_keeps_homes():
    trace = seeded_trace(1, expert_bytes=BYTES)
    plan = empty(trace, capacity_bytes=1500)
    assert not plan.resident("fast0").any()
    assert plan.resident("node0").all()
    assert plan.fast_tiers[0].capacity_bytes == 1500
    assert (plan.policy.name, plan.policy.parameters) == ("lru", {})
    assert empty(trace, slots=4, overflow=True).policy.parameters == {"overflow": 1}
    assert empty(trace, slots_per_layer=4, policy="min_bypass").fast_tiers[0].slots_per_layer == (4, 4, 4)


def test_what_it_refuses():
    trace = seeded_trace(1)
    with pytest.raises(ValueError, match="expected exactly one of"):
        empty(trace)
    with pytest.raises(ValueError, match="expected exactly one of"):
        empty(trace, slots=3, capacity_bytes=100)
    with pytest.raises(ValueError, match="does not say the bytes of an expert"):
        empty(seeded_trace(1, expert_bytes=(0, 1, 1)), capacity_bytes=100)


def test_bytes_shared_or_by_layer():
    """1,500 bytes: one pool, or 500 for each layer, which hold 5, 2 and 1 experts of 100, 200 and 300 bytes."""
    trace = seeded_trace(1, expert_bytes=BYTES)
    shared = plan_for(trace, capacity_bytes=1500, scope="global")
    assert shared.fast_tiers[0].capacity_bytes == 1500
    by_layer = plan_for(trace, capacity_bytes=1500)
    assert by_layer.fast_tiers[0].slots_per_layer == (5, 2, 1)
    assert scored_part(trace, shared) == (trace, "every request; the fast tier was empty at first")
    assert plan_for(trace, capacity_bytes=1500, overflow=True).policy.parameters == {"overflow": 1}
    hits = {name: simulate(trace, plan).hits for name, plan in (("shared", shared), ("by layer", by_layer))}
    assert min(hits.values()) > 0


def test_slots_over_all_layers():
    trace = seeded_trace(1)
    assert plan_for(trace, slots=20, scope="global").resident("fast0").sum() == 20
    assert plan_for(trace, slots=5, scope="layer").resident("fast0").sum(1).tolist() == [5, 5, 5]


def test_combinations_that_contradict():
    trace = seeded_trace(1, expert_bytes=BYTES)
    for options, said in (
        ({"slots": 3, "capacity_bytes": 100}, "got both --slots and --bytes"),
        ({"path": "plan.json", "capacity_bytes": 100}, "got both --plan and --bytes"),
        ({"scope": "global"}, "no --slots or --bytes"),
        ({"scope": "everywhere", "slots": 3}, "expected layer or global"),
        ({"slots": 37, "scope": "global"}, "expected 1 to 36, the experts of all layers"),
        ({"slots": 13}, "expected 1 to 12, the experts of a layer"),
        ({"capacity_bytes": 1000, "policy": "static"}, "static fills no slot"),
        ({"capacity_bytes": 1000, "policy": "kt_dynamic"}, "kt_dynamic fills no slot"),
        ({"capacity_bytes": 1000, "policy": "magic"}, "policy is magic"),
    ):
        with pytest.raises(ValueError, match=said):
            plan_for(trace, **options)
    with pytest.raises(ValueError, match="give --slots"):
        plan_for(seeded_trace(1, expert_bytes=(0, 0, 0)), capacity_bytes=1000)
