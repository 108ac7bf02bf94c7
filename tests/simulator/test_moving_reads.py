"""Bytes of nodes beside a fast tier whose policy moves experts: by hand from the log, and as the kernels count them."""

from __future__ import annotations

import os

import numpy as np
import pytest

import moelab
from moelab import PLANNERS, simulate
from moelab.dispatch import assign
from moelab.domain.machine import Machine
from moelab.domain.plan import FastTier, Plan
from moelab.domain.trace import NO_EXPERT, Phase
from moelab.kernels import isa_table
from moelab.policies.signature import EVICT
from tests.seeded_traces import seeded_trace

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def beside_a_tier(plan, policy, slots=4, weight_format="int4_g32", expert_bytes=None):
    formats = {name: each.model_dump() for name, each in plan.format_of_tier.items()}
    num_layers = plan.model.num_layers
    fast = {"weight_format": weight_format, "expert_bytes": expert_bytes or formats["node0"]["expert_bytes"]}
    changes = {
        "tiers": (*plan.tiers, "fast0"), "format_of_tier": formats | {"fast0": fast}, "policy": {"name": policy},
        "fast_tiers": (FastTier(tier="fast0", slots_per_layer=(slots,) * num_layers),),
    }  # fmt: skip
    return Plan.model_validate(plan.model_dump() | changes)


@pytest.mark.parametrize("policy", ["lru", "lfu", "admit_lfru", "prefetch_previous", "second_touch", "static"])
@pytest.mark.parametrize("planner", ["round_robin", "mirror", "replicate", "row_split"])
def test_equal_the_log_by_hand(policy, planner):
    """Residents of every request from the log, the copies that serve by Python's face of dispatch, uploads' sources."""
    trace = seeded_trace(7, num_experts=12, num_requests=6, batch=2, unrouted=0.1, expert_bytes=(7200, 7200, 7200))
    options = {"extra_memory": 0.3} if planner == "replicate" else {}
    plan = PLANNERS[planner](trace, nodes=2, moe_intermediate_size=32 * 12, score=False, **options)
    plan = beside_a_tier(plan, policy)
    result = simulate(trace, plan, log=True, progress=False)
    columns = plan.placements.arrays()

    def pieces(layer, expert):
        mine = (columns["layer"] == layer) & (columns["expert"] == expert) & (columns["tier"] < 2)
        for start, stop in sorted(set(zip(columns["start"][mine], columns["stop"][mine], strict=True))):
            held = columns["tier"][mine & (columns["start"] == start) & (columns["stop"] == stop)]
            yield held.tolist(), 7200 * int(stop) // 12 - 7200 * int(start) // 12

    resident, log, row = set(), result.log, 0
    steps = np.unique(trace.tokens.step)
    reads, copies = np.zeros((2, len(steps), 3, 2), np.int64)
    for index, step in enumerate(steps):
        for layer in range(3):
            while row < len(log) and log[row, 0] < 3 * index + layer:
                _, kind, at, expert, _ = log[row].tolist()
                resident.discard((at, expert)) if kind == EVICT else resident.add((at, expert))
                row += 1
            ids = set(trace.experts[trace.tokens.step == step, layer].ravel().tolist()) - {NO_EXPERT}
            jobs = [job for e in sorted(ids) if (layer, e) not in resident for job in pieces(layer, e)]
            if jobs:
                masks = [sum(1 << node for node in nodes) for nodes, _ in jobs]
                chosen = assign(masks, num_tiers=2, sizes=[size for _, size in jobs])
                np.add.at(reads[index, layer], chosen.tier_of, [size for _, size in jobs])
    for clock, kind, layer, expert, _ in log.tolist():
        if kind != EVICT:
            for nodes, size in pieces(layer, expert):
                copies[clock // 3, clock % 3, min(nodes)] += size
    np.testing.assert_array_equal(result.node_reads, reads)
    if policy == "static":
        assert result.node_copies is None
    else:
        np.testing.assert_array_equal(result.node_copies, copies)
        assert result.hit_rate_per_request > 0
    assert sum(result.bytes_of_node.values()) == 7200 * (result.misses + result.uploads + result.prefetches)
    without = simulate(trace, plan, progress=False)
    assert without.log is None
    np.testing.assert_array_equal(without.node_reads, reads)
    for name in ("hits", "misses", "uploads", "evictions"):
        assert getattr(without, name) == getattr(result, name)


def machine_of(rates, fast=()):
    base = Machine.preset("desktop-ddr5-6000")
    node = base.nodes[0].model_dump()
    nodes = [node | {"name": f"node{n}", "read_gb_per_s": {"1": rate}} for n, rate in enumerate(rates)]
    return Machine.model_validate(base.model_dump() | {"nodes": nodes, "fast_tiers": list(fast)})


def test_the_slowest_node_decides_the_time():
    trace = seeded_trace(8, num_experts=12, num_requests=6, expert_bytes=(7_200_000,) * 3)
    base = PLANNERS["round_robin"](trace, nodes=2, moe_intermediate_size=32 * 12, score=False)
    plan = beside_a_tier(base, "lru")
    machine = machine_of((20.0, 40.0))
    result = simulate(trace, plan, machine, phase="decode", progress=False)
    both = (result.node_reads + result.node_copies)[result._steps]
    seconds = (both / np.array([20e9, 40e9])).max(-1).sum()
    seconds += result.num_layer_steps * (machine.layer_overhead_s or 0)
    assert result.prediction["predicted_ms_per_token"] == pytest.approx(1e3 * seconds / result.num_tokens)
    # With a tier whose link and memory are infinitely fast in effect, uploads fade and the misses stay.
    tier = {"name": "fast0", "device": "test", "memory_bytes": 10**9, "read_gb_per_s": 1e6, "link_gb_per_s": 1e-3}
    slow = simulate(trace, plan, machine_of((20.0, 40.0), [tier]), phase="decode", progress=False)
    assert slow.prediction["wait_ms_per_token"] > 100 * result.prediction["predicted_ms_per_token"]
    still = simulate(
        trace, beside_a_tier(base, "static"), machine_of((20.0, 40.0), [tier]), phase="decode", progress=False
    )
    misses = (still.node_reads[still._steps] / np.array([20e9, 40e9])).max(-1).sum() / still.num_tokens
    assert still.prediction["cpu_ms_per_token"] == pytest.approx(1e3 * misses)


def test_a_trace_without_a_stale_gate_is_named():
    """The policy acts as LRU there, and says so; with one it does not."""
    trace = seeded_trace(9, num_experts=12)
    plan = beside_a_tier(PLANNERS["round_robin"](trace, nodes=1, score=False), "prefetch_stale_gate")
    result = simulate(trace, plan, progress=False)
    expected = "the trace has no stale_gate_experts: it acts as lru"
    assert result.policy_lacks == result.summary()["policy_lacks"] == expected
    lru = simulate(trace, beside_a_tier(plan_without_tier(plan), "lru"), progress=False)
    np.testing.assert_array_equal(result.sums, lru.sums)
    assert lru.policy_lacks is None
    assert "policy_lacks" not in lru.summary()
    from dataclasses import replace

    stale = np.roll(trace.experts, 1, axis=1)
    told = simulate(replace(trace, extras={"stale_gate_experts": stale}), plan, progress=False)
    assert told.policy_lacks is None
    assert told.prefetches > 0
    mrs = simulate(trace, beside_a_tier(plan_without_tier(plan), "mrs"), progress=False)
    assert "candidate_scores: it acts as mrs of the gate weights" in mrs.policy_lacks


def plan_without_tier(plan):
    formats = {"node0": plan.format_of_tier["node0"].model_dump()}
    return Plan.model_validate(
        plan.model_dump() | {"tiers": ("node0",), "fast_tiers": (), "format_of_tier": formats, "policy": {}}
    )


@pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
@pytest.mark.skipif(cores < 2, reason="one core only")
@pytest.mark.parametrize("planner", ["replicate", "row_split"])
def test_the_engine_reads_what_simulate_says(planner):
    """Live: two nodes, a moving tier; what the kernels counted on each node, and the run simulated from its record."""
    capture = moelab.open_trace(moelab.shipped("nano/capture")).load(phase=Phase.DECODE)
    options = {"extra_memory": 0.25} if planner == "replicate" else {}
    nodes = PLANNERS[planner](capture, nodes=2, score=False, **options)
    plan = beside_a_tier(nodes, "lru", slots=8, weight_format="float32", expert_bytes=(0,) * 6)
    with moelab.load(moelab.shipped("nano/model"), virtual_nodes=2, activation="int8", plan=nodes) as engine:
        tier = engine.use_plan(plan, late="wait")
        before = np.array([layer.bytes_of_node[:2] for layer in engine.routed])
        with moelab.record(engine) as trace:
            engine.generate([[5, 80, 81], [400, 7]], 12, stop=())
        counted = np.array([layer.bytes_of_node[:2] for layer in engine.routed]) - before
        report = tier.report()
    said = simulate(trace, plan, progress=False)
    assert said.hits == report.hits > 0
    piece_error = 0 if planner == "replicate" else 0.01  # kernels round the rows of down_proj to tiles
    np.testing.assert_allclose(said.node_reads.sum(0), counted, rtol=piece_error)
