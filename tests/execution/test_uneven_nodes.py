"""Nodes of unequal speed, from the plan to the measurement: what it was made for is what dispatch is told."""

from __future__ import annotations

import os

import numpy as np
import pytest

import moelab
from moelab import PLANNERS, simulate
from moelab.domain.machine import Machine, NumaNode
from moelab.domain.plan import Plan
from moelab.domain.trace import Phase
from moelab.kernels import isa_table
from moelab.kernels.pages import several_nodes

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
needs_two_nodes = pytest.mark.skipif(not NATIVE or cores < 2, reason="needs native kernels and two cores")
PROMPTS = [[5, 80, 81], [400, 7]]


@pytest.fixture(scope="module")
def capture():
    return moelab.open_trace(moelab.shipped("nano/capture")).load(phase=Phase.DECODE)


def replicated(capture, **options):
    return PLANNERS["replicate"](capture, nodes=2, extra_memory=0.25, score=False, **options)


def machine_of(*rates):
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=2**33, read_gb_per_s={1: rate})
        for n, rate in enumerate(rates)
    )
    return Machine(name="paper", source="calibration", nodes=nodes, last_level_cache_bytes=32 << 20)


def test_a_plan_says_the_rates_that_it_was_made_for(capture, tmp_path):
    given, by_machine = replicated(capture, node_rates=[3, 1]), replicated(capture, machine=machine_of(12.0, 4.0))
    assert given.node_rates == (3.0, 1.0)
    assert by_machine.node_rates == (12.0, 4.0)
    assert given.placements == by_machine.placements
    assert replicated(capture).node_rates is None
    given.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").node_rates == (3.0, 1.0)
    assert "node rates" in given.summary()


def test_equal_rates_change_nothing(capture):
    nobody, equal = replicated(capture), replicated(capture, node_rates=[7, 7])
    assert equal.placements == nobody.placements
    first, second = (simulate(capture, plan, progress=False) for plan in (nobody, equal))
    np.testing.assert_array_equal(first.node_reads, second.node_reads)
    assert first.slowness is None
    assert second.slowness == (1.0, 1.0)


def test_simulate_takes_the_rates_of_the_plan(capture):
    plan = replicated(capture, node_rates=[3, 1])
    alone, beside = (
        simulate(capture, plan, progress=False),
        simulate(capture, plan, machine_of(1.0, 9.0), progress=False),
    )
    np.testing.assert_array_equal(alone.node_reads, beside.node_reads)
    assert alone.slowness == beside.slowness == (1.0, 3.0)
    assert alone.slowness_of == beside.summary()["dispatch_by"] == "the plan's node_rates"
    silent = plan.model_copy(update={"node_rates": None})
    equal = simulate(capture, silent, progress=False)
    assert "equal" in equal.slowness_of
    assert (equal.node_reads != alone.node_reads).any()
    slowest = [(run.node_reads / [3, 1]).max(-1).mean() for run in (alone, equal)]
    assert slowest[0] < slowest[1]  # with 3 : 1 in mind the slowest node has less to do
    by_machine = simulate(capture, silent, machine_of(30.0, 10.0), progress=False)
    np.testing.assert_array_equal(by_machine.node_reads, alone.node_reads)
    assert by_machine.slowness_of == "read rates of paper"


@needs_two_nodes
@pytest.mark.parametrize("way", ["load", "apply"])
@pytest.mark.parametrize("rates", [(3.0, 1.0), (1.0, 2.5), None])
def test_the_engine_reads_what_simulate_says(capture, way, rates):
    plan = replicated(capture, node_rates=rates)
    model = moelab.shipped("nano/model")
    with moelab.load(model, virtual_nodes=2, activation="int8", plan=plan if way == "load" else None) as engine:
        if way == "apply":
            applied = moelab.apply(engine, plan, progress=False)
            assert applied.slowness == (None if rates is None else (1.0, rates[0] / rates[1]))
            assert applied.slowness_of == ("equal: nobody said rates of the nodes" if rates is None else
                                           "the plan's node_rates")  # fmt: skip
        assert ("a byte takes" in repr(engine)) == (rates is not None)
        before = np.array([layer.bytes_of_node[:2] for layer in engine.routed])
        with moelab.record(engine) as trace:
            engine.generate(PROMPTS, 12, stop=())
        counted = np.array([layer.bytes_of_node[:2] for layer in engine.routed]) - before
        np.testing.assert_array_equal(simulate(trace, plan, progress=False).node_reads.sum(0), counted)
        if way == "apply" and rates == (3.0, 1.0):  # a machine that is named for it says otherwise
            told = moelab.apply(engine, plan, machine=machine_of(2.0, 8.0), progress=False)
            assert (told.slowness, told.slowness_of) == ((1.0, 0.25), "read rates of paper")
            assert engine.routed[0].placement.slowness.tolist() == [1.0, 0.25]
            one = PLANNERS["frequency"](capture, slots_per_layer=1)
            kept = moelab.apply(engine, one, progress=False)
            assert (kept.slowness, kept.slowness_of) == ((1.0, 0.25), "as before: the plan names one node")
            assert engine.routed[0].placement.slowness.tolist() == [1.0, 0.25]


@needs_two_nodes
@pytest.mark.skipif(several_nodes(), reason="needs a machine of one node")
def test_replay_takes_the_rates_of_the_plan(capture):
    plan = replicated(capture, node_rates=[3, 1])
    shared = {"expert_shape": "own", "tokens": 24, "isa": NATIVE[0], "progress": False}
    rows = {}
    for name, each, machine in (
        ("plan", plan, machine_of(1.0, 9.0)), ("equal", replicated(capture), machine_of(1.0, 1.0)),
    ):  # fmt: skip
        (rows[name],) = moelab.replay(capture, each, machine=machine, **shared).rows
    assert (rows["plan"].slowness, rows["plan"].slowness_of) == ((1.0, 3.0), "the plan's node_rates")
    assert rows["equal"].slowness_of == "read rates of paper"
    first, second = rows["plan"].bytes_of_node
    assert first > 2 * second
    assert rows["equal"].bytes_of_node[0] < 1.2 * rows["equal"].bytes_of_node[1]
