"""What must hold of every policy: capacity, pins, determinism, no policy beats MIN of its class; the contract."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.plan import PolicyChoice
from moelab.policies import POLICIES, Policy
from moelab.policies.compiled import compiled
from moelab.policies.contract import RULES, PolicyContractError
from moelab.policies.counts import LAYER_STEPS, ROUTINGS
from moelab.policies.policy import PolicyState
from moelab.policies.requests import Requests
from moelab.policies.signature import FIELDS
from moelab.simulator.simulate import simulate
from tests.seeded_traces import plan_for, seeded_trace, trace_of_sets

ORACLES = ("min_demand", "min_bypass")
ONLINE = sorted(name for name, policy in POLICIES.items() if not (policy.needs_next_use or policy.prefetches))


def sets_of(trace):
    requests = Requests.of_trace(trace)
    return [requests.experts[a:b].tolist() for a, b in zip(requests.offsets, requests.offsets[1:], strict=False)]


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), slots=st.integers(0, 12), is_global=st.booleans(), batch=st.integers(1, 3))
def test_log_obeys_the_rules(policy, seed, slots, is_global, batch):
    """Replays the log independently: hit iff resident before, victims resident and unused, capacity kept."""
    trace = seeded_trace(seed, batch=batch)
    capacity = {"slots": 3 * slots} if is_global else {"slots_per_layer": slots}
    result = simulate(trace, plan_for(trace, policy, **capacity), log=True, progress=False)
    again = simulate(trace, plan_for(trace, policy, **capacity), log=True, progress=False)
    assert np.array_equal(result.log, again.log)
    assert result.state == again.state
    residents = set()
    log = result.log.tolist()
    counts = result.counts.reshape(-1, result.counts.shape[-1])
    for clock, used in enumerate(sets_of(trace)):
        layer = clock % 3
        assert counts[clock, 0] == sum((layer, e) in residents for e in used)
        while log and log[0][0] == clock:
            _, kind, of_layer, expert, _ = log.pop(0)
            if kind == 1:
                assert (of_layer, expert) in residents
                assert of_layer != layer or expert not in used
                residents.remove((of_layer, expert))
            else:
                assert (of_layer, expert) not in residents
                residents.add((of_layer, expert))
        if is_global:
            assert len(residents) <= 3 * slots
        else:
            assert all(sum(key[0] == each for key in residents) <= slots for each in range(3))


BOUNDED = [(name, {}) for name in ONLINE] + [("lfu", {"hysteresis": 0.0}), ("lfu", {"max_uploads": 1})]


@pytest.mark.parametrize(("policy", "parameters"), BOUNDED)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), slots=st.integers(1, 12), is_global=st.booleans())
def test_no_policy_beats_the_oracle_of_its_class(policy, parameters, seed, slots, is_global):
    trace = seeded_trace(seed, batch=2)
    capacity = {"slots": 3 * slots} if is_global else {"slots_per_layer": slots}
    plan = plan_for(trace, policy, parameters=parameters, **capacity)
    online = simulate(trace, plan, progress=False)
    demand, bypass = (simulate(trace, plan_for(trace, o, **capacity), progress=False).hits for o in ORACLES)
    assert online.hits <= (demand if POLICIES[policy].oracle(plan.policy) == "min_demand" else bypass)
    assert demand <= bypass


def test_classes():
    """What may bypass has the wider oracle; what prefetches has none."""

    def oracle(name, **parameters):
        return POLICIES[name].oracle(PolicyChoice(name=name, parameters=parameters))

    assert {oracle(name) for name in ("lru", "lfu", "arc", "s3_fifo", "w_tinylfu", "min_demand")} == {"min_demand"}
    bypassing = ("static", "second_touch", "admit_lfru", "admit_ema_lfu", "min_bypass")
    assert {oracle(name) for name in bypassing} == {"min_bypass"}
    assert oracle("lfu", hysteresis=0.0) == oracle("lfu", max_uploads=2) == "min_bypass"
    assert oracle("prefetch_markov") is oracle("kt_dynamic") is None


def best_hits(sets, slots, fills):
    """Most distinct hits that any admissions reach, with pins: all states, one pool.

    ``fills``: what fits beside the hits must come in.
    """
    best = {frozenset(): 0}
    for used in map(frozenset, sets):
        after = {}
        for cached, hits in best.items():
            hits += len(cached & used)
            kept_options = subsets(cached - used)
            fit = min(len(used - cached), slots - len(cached & used)) if fills else 0
            for admitted in subsets(used - cached):
                if len(admitted) < fit:
                    continue
                for kept in kept_options:
                    now = (cached & used) | admitted | kept
                    if len(now) <= slots and after.get(now, -1) < hits:
                        after[now] = hits
        best = after
    return max(best.values())


def subsets(items):
    out = [frozenset()]
    for item in items:
        out += [s | {item} for s in out]
    return out


@pytest.mark.parametrize("oracle", ORACLES)
@settings(max_examples=100, deadline=None)
@given(
    sets=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True), min_size=1, max_size=9),
    slots=st.integers(1, 4),
)
def test_oracle_is_optimal(oracle, sets, slots):
    trace = trace_of_sets(sets, num_experts=5)
    result = simulate(trace, plan_for(trace, oracle, slots_per_layer=slots), progress=False)
    assert result.hits == best_hits(sets, slots, fills=oracle == "min_demand")


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_snapshot_is_independent_and_equal(policy):
    trace = seeded_trace(3)
    requests = Requests.of_trace(trace)
    state = PolicyState.of_plan(plan_for(trace, policy, slots_per_layer=4), POLICIES[policy], requests.first_use)
    snapshot = state.copy()
    assert snapshot == state
    snapshot.resident[0, 0] = 1
    assert snapshot != state
    assert state.resident[0, 0] == 0


def test_signature_has_the_agreed_arguments():
    assert list(FIELDS)[:6] == ["clock", "step", "layer", "flags", "upload_budget", "experts"]
    assert len(FIELDS) == 26


@compiled
def break_rule(view):
    """Breaks one rule at request 1 of the trace {0,1} {0,2}; expert 0 resident, expert 3 pinned by the plan."""
    admit, evict, prefetch, num_out = view.admit, view.evict, view.prefetch, view.num_out
    if view.clock != 1:
        return
    rule = view.int_parameters[0]
    if rule == 1:
        num_out[1] = len(evict) + 1
    if rule in (2, 3, 4, 9):
        evict[0, 0] = 0
        evict[0, 1] = 1 if rule == 2 else 0 if rule == 3 else 3 if rule == 4 else 77
        num_out[1] = 1
    if rule in (5, 6, 7):
        admit[0, 0] = 1 if rule == 5 else 0 if rule == 6 else 2
        admit[0, 1] = 5 if rule == 7 else 0
        num_out[0] = 1
    if rule in (8, 10):
        for i in range(2 if rule == 8 else 4):
            prefetch[i, 0] = 0
            prefetch[i, 1] = 1 + i if rule == 8 else 4 + i
            prefetch[i, 2] = 0
        num_out[2] = 2 if rule == 8 else 4


@pytest.mark.parametrize("rule", sorted(RULES))
def test_broken_policy_is_named_with_the_rule(rule):
    trace = trace_of_sets([[0, 1], [0, 2]], num_experts=8)
    plan = plan_for(
        trace, "static", slots_per_layer=3, resident=[(0, 0), (0, 3)], pinned=[(0, 3)], upload_budget=3,
        parameters={"rule": rule},
    )  # fmt: skip
    broken = Policy(name="broken", decide=break_rule, reference="none", parameters={"rule": 0})
    with pytest.raises(PolicyContractError) as raised:
        simulate(trace, plan, policy=broken, progress=False)
    text = str(raised.value)
    assert "policy broken broke the contract at request 1 (step 1, layer 0)" in text
    assert RULES[rule] in text


def test_unknown_parameter_and_lost_home_are_refused():
    trace = seeded_trace()
    with pytest.raises(ValueError, match="policy lru got parameters ways, expected some of overflow"):
        simulate(trace, plan_for(trace, "lru", slots_per_layer=2, parameters={"ways": 2}))
    plan = plan_for(trace, "lru", slots_per_layer=2).model_copy(update={"keep_home": False})
    with pytest.raises(ValueError, match="keep_home is false"):
        simulate(trace, plan)
    with pytest.raises(ValueError, match="placements exceed the capacity of fast0 by 1 slots"):
        simulate(trace, plan_for(trace, "lru", slots_per_layer=1, resident=[(0, 1), (0, 2)]))


@pytest.mark.parametrize("policy", [name for name, each in POLICIES.items() if each.layers_are_apart])
def test_layer_by_layer_equals_in_order(policy):
    """A replay without a log goes through a block of steps layer by layer, one with a log in order: same counts, same
    residents. Several requests, prefill of several tokens, a second block; capacities differ by layer.
    """
    trace = seeded_trace(
        11, num_layers=5, num_experts=12, top_k=3, num_requests=8, prefill_tokens=6, decode_tokens=24, batch=2
    )
    parameters = {"decay": 2.0**-20} if policy == "ema_lfu" else {}  # its unit changes every 13 steps
    plan = plan_for(
        trace, policy, slots_per_layer=5, resident=[(0, 3), (2, 1), (2, 7)], upload_budget=3, parameters=parameters
    )
    fast = plan.fast_tiers[0].model_copy(update={"slots_per_layer": (5, 1, 7, 0, 12)})
    plan = plan.model_copy(update={"fast_tiers": (fast,)})
    in_order, by_layer = (simulate(trace, plan, log=log, progress=False) for log in (True, False))
    assert in_order.sums[:, :, :LAYER_STEPS].sum() > 0
    assert len(in_order.phase_of_step) > 65
    for name in ("counts", "sums", "totals"):
        assert np.array_equal(getattr(in_order, name), getattr(by_layer, name)), name
    assert np.array_equal(in_order.state.resident, by_layer.state.resident)
    assert np.array_equal(in_order.sums[:, :, :LAYER_STEPS].sum(0), in_order.counts.sum(0))
    assert (in_order.counts[:, :, ROUTINGS] > 0).sum() == in_order.num_layer_steps
    only_sums = simulate(trace, plan, by_step=False, progress=False)
    assert only_sums.counts is None
    assert only_sums.summary() == in_order.summary()
