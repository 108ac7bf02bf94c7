"""Short runs of nano under a fast tier, recorded, and the comparison with what the simulator makes of the record."""

import numpy as np

from moelab import record, simulate
from moelab.domain.plan import PolicyChoice
from moelab.planner import empty
from moelab.policies.counts import LATE

PROMPTS = [[5, 80, 81, 82, 90, 12], [400, 7], [1000, 1001, 1002, 1003], [31, 32, 33]]


def plan_of(
    engine, policy="lru", *, slots_per_layer=None, resident=(), pinned=(), parameters=None, budget=None,
    weight_format="float32", **capacity,
):  # fmt: skip
    """An empty plan with some experts placed on the fast tier; `resident` and `pinned` are (layer, expert).

    float32 slots are the cheapest on a CPU: torch's int4 product takes 100 us there.
    """
    if slots_per_layer is None and not capacity:
        slots_per_layer = 7
    slots = engine.slot_format(weight_format)
    plan = empty(engine.trace_header(), slots_per_layer=slots_per_layer, policy=policy, fast_format=slots, **capacity)
    placed = [*resident, *pinned]
    columns = plan.placements.model_dump()
    for layer, expert in placed:
        for name, value in {"layer": layer, "expert": expert, "start": 0, "stop": plan.num_units, "tier": 1}.items():
            columns[name] = (*columns[name], value)
    return type(plan).model_validate(
        plan.model_dump()
        | {
            "placements": columns,
            "pinned": [(layer, expert, "fast0") for layer, expert in pinned],
            "policy": PolicyChoice(name=policy, parameters=parameters or {}, seed=3),
            "upload_budget": budget,
        }
    )


def run_live(engine, plan, *, batch_size=2, new_tokens=4, **choices):
    """(tier, trace): four requests, two at a time, then one alone; their prompts in chunks of four."""
    tier = engine.use_plan(plan, keep_log=True, **choices)
    with record(engine) as trace:
        engine.generate(PROMPTS, new_tokens, batch_size=batch_size, prefill_chunk=4, stop=())
        engine.generate(PROMPTS[0], 3, stop=())
    return tier, trace


def assert_live_equals_simulated(tier, trace, policy=None):
    """Counts of every request, victims and uploads in order, residents and all that the policy remembers."""
    simulated = simulate(trace, tier.plan, log=True, policy=policy, progress=False)
    live = tier.requests
    late = live[:, LATE].copy()
    live[:, LATE] = 0
    np.testing.assert_array_equal(live, simulated.counts.reshape(live.shape))
    np.testing.assert_array_equal(tier.log, simulated.log)
    np.testing.assert_array_equal(tier.resident, simulated.state.resident > 0)
    for name, live_array in vars(tier.state).items():
        np.testing.assert_array_equal(live_array, getattr(simulated.state, name), err_msg=name)
    report = tier.report()
    assert report.late == late.sum()
    assert report.num_copied + report.num_superseded == simulated.uploads + simulated.prefetches
    for name in ("hits", "misses", "uploads", "prefetches", "evictions", "hit_rate_per_routing"):
        assert getattr(report, name) == getattr(simulated, name), name
    return simulated, report
