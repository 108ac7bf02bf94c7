"""Reads of late hits are counted apart, node by node: what is left is what the simulator says without them."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

import moelab
from moelab import simulate
from moelab.domain.plan import Plan
from moelab.engine.fast_tier.fast_tier import FastTier
from moelab.kernels import isa_table
from moelab.planner import PLANNERS
from tests.engine.fast_tier.nano_runs import PROMPTS
from tests.migration.nano_plans import with_fast_tier

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
pytestmark = [
    pytest.mark.skipif(not NATIVE, reason="native kernels are not built"),
    pytest.mark.skipif(cores < 2, reason="one core only"),
]


@pytest.mark.parametrize("name", ["arenas", "round_robin", "row_split", "mirror"])
def test_what_is_not_late_is_what_the_simulator_says(name, monkeypatch):
    """Copies that take far longer than a step. With several copies of an expert dispatch sees the late ones too, so
    that there only the sum over nodes is the simulator's."""
    capture = moelab.open_trace(moelab.shipped("nano/capture")).load()
    nodes = 1 if name == "arenas" else 2
    planner = "round_robin" if name == "arenas" else name
    base = PLANNERS[planner](capture, nodes=nodes, phase="decode", score=False)
    plan = with_fast_tier(base)
    copy = FastTier._copy

    def slow(self, job):
        time.sleep(0.02)
        return copy(self, job)

    monkeypatch.setattr(FastTier, "_copy", slow)
    with moelab.load(moelab.shipped("nano/model"), virtual_nodes=2, plan=None if nodes == 1 else base) as engine:
        tier = engine.use_plan(plan, late="home", keep_log=True)
        before = np.array([layer.bytes_of_node for layer in engine.routed])
        with moelab.record(engine) as trace:
            engine.generate(PROMPTS, 8, batch_size=2, stop=())
        counted = (np.array([layer.bytes_of_node for layer in engine.routed]) - before).sum(0)
        report, expert_bytes = tier.report(), engine.expert_bytes
    late = np.array(report.late_bytes_of_node)
    assert report.late > 0
    assert late.shape == (nodes,)
    assert late.sum() == report.late * expert_bytes
    assert report.summary()["late_bytes_of_node"] == late.tolist()
    said = simulate(trace, Plan.model_validate(plan.model_dump()), progress=False)
    assert said.misses * expert_bytes == counted.sum() - late.sum()
    if nodes == 2 and name != "mirror":
        assert (late > 0).all()
        reads = said.node_reads.sum((0, 1)) * expert_bytes // plan.format_of_tier["node0"].expert_bytes[0]
        np.testing.assert_allclose(counted - late, reads, rtol=0 if name == "round_robin" else 0.01)


def test_waiting_reads_nothing_late(monkeypatch):
    capture = moelab.open_trace(moelab.shipped("nano/capture")).load()
    base = PLANNERS["round_robin"](capture, nodes=2, phase="decode", score=False)
    copy = FastTier._copy

    def slow(self, job):
        time.sleep(0.005)
        return copy(self, job)

    monkeypatch.setattr(FastTier, "_copy", slow)
    with moelab.load(moelab.shipped("nano/model"), virtual_nodes=2, plan=base) as engine:
        tier = engine.use_plan(with_fast_tier(base), late="wait")
        engine.generate(PROMPTS[0], 6, stop=())
        report = tier.report()
        assert report.late > 0
        assert report.late_bytes_of_node == (0, 0)
