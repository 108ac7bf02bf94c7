"""Every policy against its naive twin, decision by decision, on random traces; and hand-worked traces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.policies import POLICIES
from moelab.policies.counts import EVICTIONS, HITS, MISSES, PREFETCHES, ROUTED_HITS, ROUTINGS, UPLOADS
from moelab.policies.signature import UNLIMITED
from moelab.simulator.simulate import simulate
from tests.policies import naive
from tests.seeded_traces import plan_for, seeded_trace


def decisions(result):
    """{clock: (admitted keys, evicted keys, prefetched keys)} of a run with a log, in order."""
    out = {}
    for clock, kind, layer, expert, _ in result.log.tolist():
        out.setdefault(clock, ([], [], []))[kind].append((layer, expert))
    return out


def assert_equal_to_twin(trace, policy, *, overflow=False, resident=(), pinned=(), parameters=None, **capacity):
    chosen = {**(parameters or {}), **({"overflow": 1} if overflow else {})}
    plan = plan_for(trace, policy, resident=list(resident), pinned=list(pinned), parameters=chosen, **capacity)
    result = simulate(trace, plan, log=True, progress=False)
    defaults = {**POLICIES[policy].parameters, **(parameters or {})}
    rows, residents = naive.replay(
        trace, policy, overflow=overflow, resident=resident, pinned=pinned, parameters=defaults, **capacity
    )
    made = decisions(result)
    counts = result.counts.reshape(-1, result.counts.shape[-1])
    assert len(rows) == len(counts)
    for clock, (hits, misses, admitted, evicted, prefetched, routed_hits, routings) in enumerate(rows):
        got_admitted, got_evicted, got_prefetched = made.get(clock, ([], [], []))
        assert got_evicted == evicted, f"request {clock}: evicted"
        assert got_admitted == admitted, f"request {clock}: admitted"
        assert got_prefetched == prefetched, f"request {clock}: prefetched"
        expected = {HITS: hits, MISSES: misses, UPLOADS: len(admitted), EVICTIONS: len(evicted)}
        expected |= {ROUTED_HITS: routed_hits, ROUTINGS: routings, PREFETCHES: len(prefetched)}
        for column, value in expected.items():
            assert counts[clock, column] == value, f"request {clock}, column {column}"
    assert {tuple(k) for k in np.argwhere(result.state.resident).tolist()} == residents
    return result


_admission = {"hysteresis": st.sampled_from([-1.0, 0.0, 0.25]), "max_uploads": st.sampled_from([1, 2, UNLIMITED])}
PARAMETERS = {
    "random": st.fixed_dictionaries({"seed": st.integers(0, 2**40)}),
    "slru": st.fixed_dictionaries({"protected": st.sampled_from([0.0, 0.5, 0.8, 1.0])}),
    "s3_fifo": st.fixed_dictionaries(
        {
            "small": st.sampled_from([0.1, 0.3, 0.5]),
            "ghosts": st.sampled_from([0.0, 0.5, 0.9]),
            "promote_after": st.integers(1, 2),
        }
    ),
    "w_tinylfu": st.fixed_dictionaries(
        {
            "window": st.sampled_from([0.01, 0.25, 0.5]),
            "protected": st.sampled_from([0.0, 0.5, 0.8]),
            "sample": st.integers(1, 10),
        }
    ),
    "kt_dynamic": st.fixed_dictionaries({"min_routings": st.integers(0, 12)}),
    "prefetch_previous": st.fixed_dictionaries({"width": st.integers(0, 6)}),
    "prefetch_stale_gate": st.fixed_dictionaries({"width": st.integers(0, 6)}),
    "prefetch_markov": st.fixed_dictionaries({"width": st.integers(0, 6), "largest": st.sampled_from([2, 3, 5, 255])}),
    "prefetch_eam": st.fixed_dictionaries(
        {"width": st.integers(0, 4), "depth": st.integers(0, 3), "rows": st.integers(1, 3)}
    ),
    "second_touch": st.fixed_dictionaries({"window": st.integers(1, 6)}),
    "lfu": st.fixed_dictionaries({**_admission, "forget": st.integers(0, 1)}),
    "ema_lfu": st.fixed_dictionaries({**_admission, "decay": st.sampled_from([0.25, 0.5, 1.0])}),
    "admit_ema_lfu": st.fixed_dictionaries({"decay": st.sampled_from([0.5, 1.0])}),
    "eam": st.fixed_dictionaries(_admission),
    "lfru": st.fixed_dictionaries(_admission),
    "gdsf": st.fixed_dictionaries({**_admission, "floor_before": st.integers(0, 1)}),
    "mrs": st.fixed_dictionaries({**_admission, "alpha": st.just(0.5), "top_p": st.integers(1, 5)}),
}
"""What is drawn beside the defaults; floats are powers of two where a twin must meet them bit by bit."""

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
@settings(max_examples=25, deadline=None)
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
    overflow = not POLICIES[policy].needs_next_use and data.draw(st.booleans())
    if data.draw(st.booleans()):
        rng = np.random.default_rng(seed)
        size = (trace.shape[0], trace.shape[1], shape["num_experts"])
        trace.extras["candidate_scores"] = rng.integers(0, 8, size).astype(np.float16)
        trace.extras["stale_gate_experts"] = rng.permuted(trace.experts, axis=0)
    assert_equal_to_twin(
        trace, policy, overflow=overflow, resident=resident, pinned=pinned, upload_budget=budget,
        parameters=data.draw(PARAMETERS.get(policy, st.just({}))), **capacity,
    )  # fmt: skip
