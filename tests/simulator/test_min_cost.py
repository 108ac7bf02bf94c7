"""min_cost against brute force over all admissions and evictions, against min_bypass, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.policies import POLICIES
from moelab.simulator import min_cost as module
from moelab.simulator import simulate
from moelab.simulator.min_cost import min_cost
from tests.policies.test_policy_properties import subsets
from tests.seeded_traces import plan_for, seeded_trace, trace_of_sets


def best_value(sets, slots, price):
    """Largest hits - price * uploads over all states of one pool, with bypass and pins."""
    best = {frozenset(): 0.0}
    for used in map(frozenset, sets):
        after = {}
        for cached, value in best.items():
            for admitted in subsets(used - cached):
                for kept in subsets(cached - used):
                    now = (cached & used) | admitted | kept
                    got = value + len(cached & used) - price * len(admitted)
                    if len(now) <= slots and after.get(now, -np.inf) < got:
                        after[now] = got
        best = after
    return max(best.values())


@settings(max_examples=80, deadline=None)
@given(
    sets=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True), min_size=1, max_size=9),
    slots=st.integers(0, 4),
    price=st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 3.0]),
)
def test_equals_brute_force(sets, slots, price):
    trace = trace_of_sets(sets, num_experts=5)
    found = min_cost(trace, slots_per_layer=slots, price=price)
    assert found.value == pytest.approx(best_value(sets, slots, price), abs=1e-5)
    assert found.hits + found.misses == sum(map(len, sets))


@pytest.mark.parametrize("slots", [2, 4, 7])
def test_price_zero_is_min_with_bypass_and_price_one_reads_least(slots):
    trace = seeded_trace(11, batch=2)
    at_zero, at_one = (min_cost(trace, slots_per_layer=slots, price=p) for p in (0.0, 1.0))
    bypass = simulate(trace, plan_for(trace, "min_bypass", slots_per_layer=slots), progress=False)
    assert at_zero.hits == bypass.hits
    assert at_one.num_layer_steps == bypass.num_layer_steps
    for name in sorted(POLICIES):
        run = simulate(trace, plan_for(trace, name, slots_per_layer=slots), progress=False)
        if not run.prefetches:
            assert run.reads_per_layer_step >= at_one.reads_per_layer_step - 1e-9, name


def test_global_pool_and_first_steps():
    trace = seeded_trace(12)
    everywhere, by_layer = min_cost(trace, slots=9), min_cost(trace, slots_per_layer=3)
    assert everywhere.value >= by_layer.value
    cut = min_cost(trace, slots=9, num_steps=5)
    assert cut.hits + cut.misses < everywhere.hits + everywhere.misses
    assert cut == min_cost(trace.take(trace.tokens.step <= np.unique(trace.tokens.step)[4]), slots=9)


def test_by_hand():
    """One slot, 0 1 0 1 1: keeping 1 from request 1 on costs one upload and hits twice; 0 once, then 1 once for two."""
    found = min_cost(trace_of_sets([[0], [1], [0], [1], [1]], num_experts=2), slots_per_layer=1, price=1.0)
    assert (found.hits, found.uploads, found.misses) == (2, 1, 3)
    assert found.reads_per_layer_step == 4 / 5


def test_refusals():
    trace = seeded_trace(1)
    with pytest.raises(ValueError, match="both or neither"):
        min_cost(trace)
    with pytest.raises(ValueError, match="price is -1"):
        min_cost(trace, slots=3, price=-1)


@settings(max_examples=40, deadline=None)
@given(
    sets=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True), min_size=2, max_size=8),
    slots=st.integers(1, 4),
    price=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_in_integers_it_is_the_same_optimum(sets, slots, price):
    """No fractional solution is at hand; a tolerance below nothing sends every program there."""
    trace = trace_of_sets(sets, num_experts=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TOLERANCE", -1.0)
        found = min_cost(trace, slots_per_layer=slots, price=price)
    assert found.value == pytest.approx(best_value(sets, slots, price), abs=1e-5)
    returns = sum(map(len, sets)) > len(frozenset().union(*map(frozenset, sets)))  # some expert is used twice
    assert found.num_integer_programs == int(returns)


def test_shows_itself():
    found = min_cost(seeded_trace(3), slots_per_layer=4)
    frame = found.to_frame()
    assert frame.reads_per_layer_step[0] == found.reads_per_layer_step
    assert "reads_per_layer_step" in repr(found)
    assert "MinCost" in found._repr_html_()
