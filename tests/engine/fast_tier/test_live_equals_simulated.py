"""Live equals simulated: the decisions of a live nano run are those of `simulate` on the recorded trace of that run."""

from dataclasses import replace

import numpy as np
import pytest
from numba import njit

from moelab import load, record, shipped, simulate
from moelab.engine.generate import run
from moelab.engine.sampling import Sampling
from moelab.policies import POLICIES, Policy
from moelab.policies.compiled import OPTIONS
from moelab.policies.signature import FLAG_DECODE, FLAG_PREFILL, FLAG_REQUEST_ENDED, FLAG_REQUEST_STARTS
from tests.engine.fast_tier.nano_runs import PROMPTS, assert_live_equals_simulated, plan_of, run_live

ONLINE = [name for name, policy in POLICIES.items() if not policy.needs_next_use]
ORACLES = [name for name, policy in POLICIES.items() if policy.needs_next_use]


@pytest.fixture(scope="module")
def engine():
    with load(shipped("nano/model"), num_workers=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def torch_engine():
    """Decodes by torch, not by the native list of operations."""
    with load(shipped("nano/model"), num_workers=1, dense_weights="torch", dense_dtype="float32") as engine:
        yield engine


@pytest.mark.parametrize("policy", ONLINE)
def test_every_policy(engine, policy):
    resident, pinned = [(0, 3), (0, 9), (2, 40), (5, 1)], [(1, 4), (3, 3)]
    tier, trace = run_live(engine, plan_of(engine, policy, resident=resident, pinned=pinned))
    simulated, report = assert_live_equals_simulated(tier, trace)
    assert trace.num_tokens == sum(map(len, PROMPTS)) + 4 * 3 + len(PROMPTS[0]) + 2
    assert report.hits > 0
    assert report.num_initial_copies == 6
    if policy != "static":
        assert simulated.uploads + simulated.prefetches > 0


@pytest.mark.parametrize(
    "how",
    [
        {"slots": 30}, {"capacity_bytes": 30 * 4 * 3 * 128 * 256 + 999}, {"slots_per_layer": 48},
        {"slots_per_layer": 0}, {"slots_per_layer": (0, 1, 2, 3, 10, 48)}, {"budget": 1}, {"budget": 0},
    ],
    ids=str,
)  # fmt: skip
def test_every_capacity(engine, how):
    assert_live_equals_simulated(*run_live(engine, plan_of(engine, "prefetch_markov", **how)))


@pytest.mark.parametrize("policy", ["lru", "mrs", "prefetch_previous", "prefetch_stale_gate"])
def test_decode_by_torch(torch_engine, policy):
    assert_live_equals_simulated(*run_live(torch_engine, plan_of(torch_engine, policy)))


@pytest.mark.parametrize(
    ("policy", "array"), [("mrs", "candidate_scores"), ("prefetch_stale_gate", "stale_gate_experts")]
)
def test_what_a_policy_reads_is_recorded_and_matters(engine, policy, array):
    """Without the array the simulator would decide otherwise."""
    tier, trace = run_live(engine, plan_of(engine, policy))
    assert set(trace.extras) == {array}
    simulated, report = assert_live_equals_simulated(tier, trace)
    assert report.prefetches > 0 or policy == "mrs"
    without = simulate(replace(trace, extras={}), tier.plan, log=True, progress=False)
    assert not np.array_equal(without.log, simulated.log)
    engine.use_plan(plan_of(engine, "lru"))
    with record(engine) as trace:
        engine.generate(PROMPTS[1], 2)
    assert trace.extras == {}


def test_waiting_for_copies_changes_no_decision(engine):
    tier, trace = run_live(engine, plan_of(engine, "lru"), late="wait")
    assert_live_equals_simulated(tier, trace)


@pytest.mark.parametrize("policy", ORACLES)
def test_an_oracle_is_refused(engine, policy):
    before = engine.fast_tier
    with pytest.raises(ValueError, match=f"policy {policy} is an oracle: it needs the future"):
        engine.use_plan(plan_of(engine, policy))
    assert engine.fast_tier is before


@njit(**OPTIONS)
def _fold(view):
    """Everything that a policy is told, folded into its state."""
    state = view.int_state
    for value in (view.clock, view.step, view.layer, view.flags, view.upload_budget, len(view.experts)):
        state[0] = state[0] * 31 + value
    for i in range(len(view.experts)):
        state[0] = state[0] * 31 + view.experts[i]
        state[0] = state[0] * 31 + view.token_counts[i]
        view.float_state[0] = view.float_state[0] * 0.9 + view.gate_sums[i]
    for i in range(len(view.hits)):
        state[0] = state[0] * 31 + view.hits[i]
    for i in range(len(view.stale_experts)):
        state[0] = state[0] * 31 + view.stale_experts[i]
    for row in range(len(view.candidate_scores)):
        for expert in range(view.candidate_scores.shape[1]):
            view.float_state[0] = view.float_state[0] * 0.9 + view.candidate_scores[row, expert]
    state[1 + view.flags] += 1


def test_a_policy_is_told_exactly_the_same(engine):
    """Clock, steps, flags, order of the experts, counts, gate sums, router scores and stale-gate ids; a stream that is
    dropped ends its request."""
    reads = ("candidate_scores", "stale_gate_experts")
    policy = Policy("fold", _fold, "this test", {}, lambda _: (np.zeros(1), np.zeros(33, np.int64)), reads=reads)
    tier = engine.use_plan(plan_of(engine, "lru", resident=[(0, 3), (4, 7)]), policy=policy, keep_log=True)
    with record(engine) as trace:
        lengths = zip(PROMPTS, (2, 5, 4, 3), strict=True)
        sequences = [engine.new_sequence(prompt, length, Sampling(), ()) for prompt, length in lengths]
        list(run(engine, sequences, batch_size=3, prefill_chunk=4))
        stream = engine.stream(PROMPTS[0], 9, stop=())
        for _ in range(3):
            next(stream)
        stream.close()
        engine.forward(PROMPTS[1])
        engine.generate(PROMPTS[2], 1)
        engine.generate(PROMPTS[3], 3, stop=())
    assert_live_equals_simulated(tier, trace, policy)
    seen = set(np.flatnonzero(tier.state.int_state[1:]))
    first, ended = FLAG_REQUEST_STARTS, FLAG_REQUEST_ENDED
    assert seen == {
        FLAG_PREFILL, FLAG_PREFILL | first, FLAG_PREFILL | first | ended, FLAG_DECODE, FLAG_DECODE | ended,
    }  # fmt: skip
