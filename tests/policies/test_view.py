"""A caller in Python, as the live engine is, gets the simulator's decisions; plain Python runs a policy too."""

import numpy as np
import pytest

from moelab.policies import POLICIES
from moelab.policies.contract import close_request, open_request
from moelab.policies.policy import PolicyState
from moelab.policies.requests import Requests
from moelab.policies.signature import FLAG_OVERFLOW
from moelab.policies.view import View
from moelab.simulator import simulate
from tests.seeded_traces import plan_for, seeded_trace


def run_from_python(trace, plan, decide):
    """One call after the other; log rows as the simulator writes them, and the final state."""
    policy, requests = POLICIES[plan.policy.name], Requests.of_trace(trace)
    state = PolicyState.of_plan(plan, policy, requests.first_use if policy.needs_next_use else None)
    view = state.view()
    hits, misses = np.zeros(trace.header.num_experts, np.int32), np.zeros(trace.header.num_experts, np.int32)
    where, rows = np.zeros(5, np.int64), []
    for clock in range(requests.num_requests):
        step, layer = divmod(clock, requests.num_layers)
        entries = slice(requests.offsets[clock], requests.offsets[clock + 1])
        view.clock, view.step, view.layer = clock, requests.step[step], layer
        view.flags = requests.flags[step] | (FLAG_OVERFLOW if state.overflow else 0)
        for name in ("experts", "token_counts", "gate_sums"):
            setattr(view, name, getattr(requests, name)[entries])
        if policy.needs_next_use:
            view.next_use = requests.next_use[entries]
        open_request(view, hits, misses)
        assert len(view.hits) + len(view.misses) == len(view.experts)
        decide(view)
        num_admit, num_evict, num_prefetch = view.num_out.tolist()
        rows += [[clock, 1, *pair, -1] for pair in view.evict[:num_evict].tolist()]
        rows += [[clock, 0, layer, *pair] for pair in view.admit[:num_admit].tolist()]
        rows += [[clock, 2, *triple] for triple in view.prefetch[:num_prefetch].tolist()]
        assert close_request(view, where) == 0
    return rows, state


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_python_caller_equals_simulator(policy):
    trace = seeded_trace(7, batch=2)
    plan = plan_for(trace, policy, slots_per_layer=4, resident=[(0, 1), (0, 3), (2, 5)], pinned=[(0, 3)])
    result = simulate(trace, plan, log=True, progress=False)
    rows, state = run_from_python(trace, plan, POLICIES[policy].decide)
    assert rows == result.log.tolist()
    assert state == result.state


@pytest.mark.parametrize("policy", ["lru", "arc", "ema_lfu", "kt_dynamic", "prefetch_previous", "min_bypass"])
def test_plain_python_decides_the_same(policy):
    trace = seeded_trace(8, num_requests=2)
    plan = plan_for(trace, policy, slots_per_layer=4, resident=[(0, 1), (2, 5)])
    result = simulate(trace, plan, log=True, progress=False)
    rows, state = run_from_python(trace, plan, POLICIES[policy].decide.py_func)
    assert rows == result.log.tolist()
    assert state == result.state


def test_refusals():
    with pytest.raises(AttributeError, match="View has no field slots"):
        View(slots=1)
    with pytest.raises(TypeError, match="experts: expected a C-ordered array of int32 with 1 axes"):
        View(experts=np.zeros(3))
    with pytest.raises(TypeError, match="resident"):
        View(resident=np.zeros((4, 4), np.int8)[:, ::2])
