"""Nodes of unequal speed, from the plan to the measurement: what it was made for is what dispatch is told."""

from __future__ import annotations

import os

import numpy as np
import pytest

import moelab
from moelab import PLANNERS, simulate
from moelab.domain.expert_times import BusyNodes, ExpertTimes, NodeTimes
from moelab.domain.machine import Machine, NumaNode
from moelab.domain.model import ModelSpec
from moelab.domain.plan import Plan
from moelab.domain.trace import Phase
from moelab.kernels import ExpertLayout, isa_table
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


def calibrated(capture, slower, kernel):
    """Two nodes of one worker, the second ``slower`` times as slow in everything: of nano's shape and of OLMoE's."""
    olmoe = ModelSpec.preset("olmoe-1b-7b")
    shapes = [
        (capture.header.hidden_size, capture.header.moe_intermediate_size),
        (olmoe.hidden_size, olmoe.moe_intermediate_size),
    ]
    times = []
    for hidden, intermediate in shapes:
        num_bytes = ExpertLayout(hidden, intermediate, "int4_g32").expert_bytes
        nodes = tuple(NodeTimes(workers=1, factor={1: s}, read_gb_per_s=20 / s) for s in (1.0, slower))
        times.append(
            ExpertTimes(
                kernel=kernel, hidden_size=hidden, intermediate_size=intermediate, expert_bytes=num_bytes,
                workers_of_node=1, layer_s=1e-6, token_s=0.0, expert_s={1: num_bytes / 1e10, 8: num_bytes / 1e10},
                read_gb_per_s=20.0, residual=0.0, num_calls=1, nodes=nodes,
                busy={2: BusyNodes(read_gb_per_s=20.0, kernel_share=1.0)},
            )
        )  # fmt: skip
    here = machine_of(20.0, 20.0 / slower)
    return here.model_copy(update={"expert_times": tuple(times), "contention": {"read_share_of_2_nodes": 1.0}})


@needs_two_nodes
@pytest.mark.skipif(several_nodes(), reason="needs a machine of one node")
def test_from_plan_to_replay_predictions_order_plans_as_the_nodes_are(capture):
    """A plan for nodes of 3 : 1 and one for equal ones: simulator, planner and both predictions of replay find the one
    that was made for the machine faster."""
    kernel = f"{NATIVE[0]}/int4_g32/int8"
    machines = {"uneven": calibrated(capture, 3.0, kernel), "even": calibrated(capture, 1.0, kernel)}
    options = {"nodes": 2, "extra_memory": 0.1, "moves_per_expert": 30, "held_out": 0.25}
    plans = {name: PLANNERS["anneal"](capture, machine=machine, **options) for name, machine in machines.items()}
    ratios = {}
    for name, machine in machines.items():
        told = {}
        for made_for, plan in plans.items():
            simulated = simulate(capture, plan, machine, progress=False)
            assert simulated.prediction["predicted_by"] == machine.expert_times[0].name
            assert simulated.slowness_of == "the plan's node_rates"
            told[made_for] = [simulated.prediction["predicted_ms_per_token"]]
            if name == "even":
                continue
            row = moelab.replay(
                capture, plan, machine=machine, expert_shape="olmoe-1b-7b", tokens=48, isa=NATIVE[0], progress=False
            ).rows[-1]
            assert row.calibrated_times == machine.expert_times[1].name
            assert row.slowness == (1.0, 3.0 if made_for == "uneven" else 1.0)
            told[made_for] += [row.predicted_ms_per_token_calibrated_stored, row.predicted_ms_per_token_stored]
        ratios[name] = np.array(told["uneven"]) / np.array(told["even"])
    assert (ratios["uneven"] < 0.8).all()  # half of the experts on a node of a quarter of the speed takes twice as long
    assert (ratios["even"] > 1.2).all()
    # By bytes alone and by times in which both nodes differ by the same factor: one ratio.
    assert ratios["uneven"][1] == pytest.approx(ratios["uneven"][2], rel=0.1)
    own = plans["uneven"].prediction["predicted_ms_per_step"]
    others = PLANNERS["round_robin"](capture, nodes=2, machine=machines["uneven"], held_out=0.25)
    assert own < 0.8 * others.prediction["predicted_ms_per_step"]
