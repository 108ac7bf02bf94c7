"""Every policy against its naive twin, decision by decision, on random traces; and hand-worked traces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.policies import POLICIES
from moelab.simulator.loop import EVICTIONS, HITS, MISSES, ROUTED_HITS, ROUTINGS, UPLOADS
from moelab.simulator.simulate import simulate
from tests.policies import naive
from tests.seeded_traces import plan_for, seeded_trace, trace_of_sets


def decisions(result):
    """{clock: (admitted keys, evicted keys)} of a run with a log, in order."""
    out = {}
    for clock, kind, layer, expert, _ in result.log.tolist():
        out.setdefault(clock, ([], []))[kind].append((layer, expert))
    return out


def assert_equal_to_twin(trace, policy, *, overflow=False, resident=(), pinned=(), **capacity):
    parameters = {"overflow": 1} if overflow else {}
    plan = plan_for(trace, policy, resident=list(resident), pinned=list(pinned), parameters=parameters, **capacity)
    result = simulate(trace, plan, log=True, progress=False)
    rows, residents = naive.replay(trace, policy, overflow=overflow, resident=resident, pinned=pinned, **capacity)
    made = decisions(result)
    counts = result.counts.reshape(-1, result.counts.shape[-1])
    assert len(rows) == len(counts)
    for clock, (hits, misses, admitted, evicted, routed_hits, routings) in enumerate(rows):
        got_admitted, got_evicted = made.get(clock, ([], []))
        assert got_admitted == admitted, f"request {clock}: admitted"
        assert got_evicted == evicted, f"request {clock}: evicted"
        expected = {HITS: hits, MISSES: misses, UPLOADS: len(admitted), EVICTIONS: len(evicted)}
        expected |= {ROUTED_HITS: routed_hits, ROUTINGS: routings}
        for column, value in expected.items():
            assert counts[clock, column] == value, f"request {clock}, column {column}"
    assert {tuple(k) for k in np.argwhere(result.state.resident).tolist()} == residents
    return result


SHAPES = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 4),
        "num_experts": st.integers(4, 14),
        "top_k": st.integers(1, 4),
        "num_requests": st.integers(1, 5),
        "prefill_tokens": st.integers(0, 6),
        "decode_tokens": st.integers(1, 10),
        "batch": st.integers(1, 3),
        "unrouted": st.sampled_from([0.0, 0.3]),
    }
)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6), shape=SHAPES)
def test_equals_twin(policy, data, seed, shape):
    trace = seeded_trace(seed, **shape, expert_bytes=tuple(100 + 37 * (i % 3) for i in range(shape["num_layers"])))
    num_keys = shape["num_layers"] * shape["num_experts"]
    scope = data.draw(st.sampled_from(["slots_per_layer", "slots", "capacity_bytes"]))
    largest = {"slots_per_layer": shape["num_experts"], "slots": num_keys, "capacity_bytes": 137 * num_keys}[scope]
    capacity = {scope: data.draw(st.integers(0, largest))}
    start = data.draw(st.lists(st.integers(0, num_keys - 1), unique=True, max_size=6))
    keys = [divmod(k, shape["num_experts"]) for k in sorted(start)]
    room = {"slots_per_layer": 1, "slots": 1, "capacity_bytes": 174}[scope]
    used = {}
    resident = []
    for key in keys:
        pool = key[0] if scope == "slots_per_layer" else 0
        if used.get(pool, 0) + room <= capacity[scope]:
            used[pool] = used.get(pool, 0) + room
            resident.append(key)
    pinned = resident[: data.draw(st.integers(0, len(resident)))]
    budget = data.draw(st.sampled_from([None, 0, 1, 2]))
    overflow = policy == "lru" and data.draw(st.booleans())
    assert_equal_to_twin(
        trace, policy, overflow=overflow, resident=resident, pinned=pinned, upload_budget=budget, **capacity
    )


def test_lru_by_hand():
    """Two slots, sets {0,1} {2} {1,2} {0} {0,3}: worked on paper.

    {0,1}: both miss, both admitted, order 0 1. {2}: miss, 0 goes. {1,2}: both hit. {0}: miss, 1 goes
    (1 is older than 2). {0,3}: 0 hits, 3 misses, 2 goes.
    """
    trace = trace_of_sets([[0, 1], [2], [1, 2], [0], [0, 3]], num_experts=4)
    result = assert_equal_to_twin(trace, "lru", slots_per_layer=2)
    assert decisions(result) == {
        0: ([(0, 0), (0, 1)], []),
        1: ([(0, 2)], [(0, 0)]),
        3: ([(0, 0)], [(0, 1)]),
        4: ([(0, 3)], [(0, 2)]),
    }
    assert (result.hits, result.misses, result.uploads, result.evictions) == (3, 5, 5, 3)
    assert result.hit_rate_per_request == 3 / 8
    assert result.reads_per_layer_step == (5 + 5) / 5


def test_lru_bypasses_what_pins_leave_no_room_for():
    """One slot, set {0,1}: 0 is admitted, 1 bypassed; then {1,0}: 0 hits and is pinned, 1 bypassed again."""
    trace = trace_of_sets([[0, 1], [1, 0], [1]], num_experts=2)
    result = assert_equal_to_twin(trace, "lru", slots_per_layer=1)
    assert decisions(result) == {0: ([(0, 0)], []), 2: ([(0, 1)], [(0, 0)])}


def test_lru_overflow_holds_the_whole_set_until_the_next():
    """One slot with overflow: {0,1} both stay; {1} hits and 0 goes after the request."""
    trace = trace_of_sets([[0, 1], [1], [0]], num_experts=2)
    result = assert_equal_to_twin(trace, "lru", slots_per_layer=1, overflow=True)
    assert decisions(result) == {0: ([(0, 0), (0, 1)], []), 1: ([], [(0, 0)]), 2: ([(0, 0)], [(0, 1)])}


def test_min_bypass_by_hand():
    """One slot, 0 1 0 1 1 2: keeps 0 over 1 at request 1 (0 returns sooner), swaps at request 2, never admits 2."""
    trace = trace_of_sets([[0], [1], [0], [1], [1], [2]], num_experts=3)
    result = assert_equal_to_twin(trace, "min_bypass", slots_per_layer=1)
    # 0 admitted; 1 bypassed (3 > 2); 0 hits, never returns but is pinned; 1 replaces it; 1 hits; 2 bypassed.
    assert decisions(result) == {0: ([(0, 0)], []), 3: ([(0, 1)], [(0, 0)])}
    assert result.hits == 2


def test_static_by_hand():
    trace = trace_of_sets([[0, 1], [1, 2], [1]], num_experts=3)
    result = assert_equal_to_twin(trace, "static", slots_per_layer=1, resident=[(0, 1)])
    assert (result.hits, result.misses, result.uploads) == (3, 2, 0)
    assert result.hit_rate_per_request == 3 / 5
