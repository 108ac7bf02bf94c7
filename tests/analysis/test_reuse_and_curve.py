"""Reuse distances against a naive stack; miss-ratio curves against the simulated LRU at every capacity."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.analysis import miss_ratio_curve, reuse_distances
from moelab.policies.requests import Requests
from moelab.simulator.simulate import simulate
from tests.seeded_traces import plan_for, seeded_trace, trace_of_sets

TRACES = {
    "seed": st.integers(0, 10**6),
    "batch": st.integers(1, 3),
    "prefill": st.integers(0, 4),
    "unrouted": st.sampled_from([0.0, 0.3]),
    "num_experts": st.integers(4, 12),
}


def naive_distances(requests):
    stacks = [[] for _ in range(requests.num_layers)]  # most recent first
    out = []
    for clock in range(requests.num_requests):
        used = requests.experts[requests.offsets[clock] : requests.offsets[clock + 1]].tolist()
        stack = stacks[clock % requests.num_layers]
        out += [stack.index(e) if e in stack else -1 for e in used]
        for expert in used:
            if expert in stack:
                stack.remove(expert)
            stack.insert(0, expert)
    return out


@settings(max_examples=40, deadline=None)
@given(**TRACES)
def test_distances_equal_a_naive_stack(seed, batch, prefill, unrouted, num_experts):
    trace = seeded_trace(seed, batch=batch, prefill_tokens=prefill, unrouted=unrouted, num_experts=num_experts)
    result = reuse_distances(trace)
    assert result.distances.tolist() == naive_distances(result.requests)
    assert result.histogram().sum() == (result.distances >= 0).sum()


def test_distances_survive_many_packings():
    trace = seeded_trace(1, num_layers=2, num_experts=70, top_k=4, num_requests=3, decode_tokens=400, batch=2)
    result = reuse_distances(trace)
    assert result.distances.tolist() == naive_distances(result.requests)


def test_distances_by_hand():
    """{0,1} {2} {1,2} {0}: 1 has 2 above it, 2 has none; siblings 1 and 2 do not count for each other; 0 has both."""
    result = reuse_distances(trace_of_sets([[0, 1], [2], [1, 2], [0]], num_experts=4))
    assert result.distances.tolist() == [-1, -1, -1, 1, 0, 2]
    assert result.to_frame().first_uses.tolist() == [3]
    assert "<table" in result._repr_html_()


@settings(max_examples=15, deadline=None)
@given(**TRACES)
def test_curve_equals_the_simulated_lru_at_every_capacity(seed, batch, prefill, unrouted, num_experts):
    trace = seeded_trace(seed, batch=batch, prefill_tokens=prefill, unrouted=unrouted, num_experts=num_experts)
    requests = Requests.of_trace(trace)
    for overflow in (False, True):
        for phase in (None, "decode"):
            curve = miss_ratio_curve(trace, phase=phase, overflow=overflow, requests=requests)
            first = 0 if overflow else int(curve.exact_from.max())
            for slots in range(first, num_experts + 1):
                parameters = {"overflow": 1} if overflow else {}
                plan = plan_for(trace, "lru", slots_per_layer=slots, parameters=parameters)
                result = simulate(trace, plan, requests=requests, phase=phase)
                frame = result.to_frame()
                by_layer = frame.groupby("layer").distinct_hits.sum().tolist() if len(frame) else [0] * 3
                assert curve.hits_per_request[:, slots].tolist() == by_layer
                if result.routings:
                    missed = 1 - result.hit_rate_per_routing
                    assert curve.miss_ratio_per_routing()[slots] == pytest.approx(missed, abs=1e-12)
                    missed = 1 - result.hit_rate_per_request
                    assert curve.miss_ratio_per_request()[slots] == pytest.approx(missed, abs=1e-12)


def test_curve_falls_and_ends_at_first_uses():
    trace = seeded_trace(2, num_experts=20)
    curve = miss_ratio_curve(trace)
    assert (np.diff(curve.miss_ratio_per_request()) <= 0).all()
    requests = Requests.of_trace(trace)
    used = sum(len(np.unique(trace.experts[:, layer])) for layer in range(3))
    assert curve.miss_ratio_per_request()[-1] == pytest.approx(used / len(requests.experts))
    frame = curve.to_frame()
    assert len(frame) == 3 * 21
    assert not frame.exact[0]
    assert frame.exact.iloc[-1]
    assert "<table" in curve._repr_html_()
