"""Time on several nodes that simulate predicts: one answer with the planner's, and contention by hand."""

import numpy as np
import pytest

from moelab import simulate
from moelab.domain.expert_times import BusyNodes, ExpertTimes, NodeTimes
from moelab.domain.machine import Machine, NumaNode
from moelab.planner import PLANNERS
from tests.seeded_traces import seeded_trace

EXPERT_BYTES = 10_000_000
QUICK = {"held_out": 0.0, "phase": "decode", "moe_intermediate_size": 256}


def machine(num_nodes=2, *, hidden=None, rates=(20.0, 20.0, 20.0), shares=(0.5, 0.4)):
    """Nodes of 20 GB/s alone, of which contention leaves a part; calibrated for experts of ``hidden``, if given."""
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=10**9, read_gb_per_s={1: rates[n]}) for n in range(num_nodes)
    )
    contention = {f"read_share_of_{n + 2}_nodes": shares[n] for n in range(num_nodes - 1)}
    times = ExpertTimes(
        kernel="generic/int4_g32/int8", hidden_size=hidden or 1, intermediate_size=256, expert_bytes=EXPERT_BYTES,
        workers_of_node=1, layer_s=2e-6, token_s=1e-6, expert_s={1: 5e-4, 2: 8e-4}, piece_factor={2: 1.2, 4: 1.5},
        read_gb_per_s=20.0, residual=0.0, num_calls=1,
        busy={n + 2: BusyNodes(read_gb_per_s=20 * shares[n], kernel_share=0.9) for n in range(num_nodes - 1)},
    )  # fmt: skip
    return Machine(
        name="m", source="calibration", date="2026-01-01", nodes=nodes, contention=contention,
        expert_times=(times,) if hidden else (),
    )  # fmt: skip


def trace_of(seed, **options):
    trace = seeded_trace(seed, num_experts=12, top_k=4, decode_tokens=8, expert_bytes=(EXPERT_BYTES,) * 3, **options)
    header = trace.header.model_copy(update={"hidden_size": 64, "moe_intermediate_size": 256})
    return type(trace)(header, trace.experts, trace.gate_weights, trace.tokens)


@pytest.mark.parametrize("planner", ["mirror", "round_robin", "replicate", "row_split", "split_some"])
@pytest.mark.parametrize("num_nodes", [2, 3])
def test_plan_and_simulate_give_one_answer(planner, num_nodes):
    trace, here = trace_of(3), machine(num_nodes, hidden=64)
    extra = {"extra_memory": 0.3} if planner in ("replicate", "split_some") else {}
    plan = PLANNERS[planner](trace, nodes=num_nodes, machine=here, **extra, **QUICK)
    said = simulate(trace, plan, here, phase="decode", efficiency=0.7, progress=False)
    expected = plan.prediction["predicted_ms_per_step"]
    assert said.prediction["predicted_ms_per_token"] == pytest.approx(expected, rel=1e-5)
    assert said.prediction["predicted_by"] == plan.prediction["predicted_by"] == here.expert_times[0].name
    assert "efficiency" not in said.prediction
    assert said.of_phase("decode").layer_step_s.sum() > 0


@pytest.mark.parametrize("planner", ["round_robin", "replicate", "row_split", "anneal"])
@pytest.mark.parametrize("measured", [True, False])
def test_plan_and_simulate_give_one_answer_on_unequal_nodes(planner, measured):
    """Each node by its own times, or the first one's scaled by read rates; the slower the second, the longer."""
    trace, here = trace_of(3), machine(2, hidden=64, rates=(20.0, 8.0))
    if measured:
        nodes = (
            NodeTimes(workers=1, factor={1: 1.0}, read_gb_per_s=20.0),
            NodeTimes(workers=2, factor={1: 2.5, 4: 2.0}, read_gb_per_s=8.0),
        )
        here = here.model_copy(update={"expert_times": (here.expert_times[0].model_copy(update={"nodes": nodes}),)})
    options = {"extra_memory": 0.3} if planner in ("replicate", "anneal") else {}
    options |= {"most_visits": 1000} if planner == "anneal" else {}
    plan = PLANNERS[planner](trace, nodes=2, machine=here, **options, **QUICK)
    said = simulate(trace, plan, here, phase="decode", progress=False)
    planned_ms = plan.prediction["predicted_ms_per_step"]
    assert said.prediction["predicted_ms_per_token"] == pytest.approx(planned_ms, rel=1e-5)
    assert said.prediction["predicted_by"] == plan.prediction["predicted_by"]
    assert ("nodes scaled by read rates of m" in said.prediction["predicted_by"]) == (not measured)
    slower = here.model_copy(
        update={"nodes": (here.nodes[0], here.nodes[1].model_copy(update={"read_gb_per_s": {1: 4.0}}))}
    )
    longer = simulate(trace, plan, slower, phase="decode", progress=False).prediction["predicted_ms_per_token"]
    assert (longer == pytest.approx(said.prediction["predicted_ms_per_token"])) == measured
    assert longer >= said.prediction["predicted_ms_per_token"] * (1 - 1e-9)


def test_a_plan_for_other_rates_says_whose_nodes_its_time_is_of():
    plan = PLANNERS["round_robin"](trace_of(3), nodes=2, machine=machine(2, hidden=64), node_rates=[3, 1], **QUICK)
    assert plan.prediction["predicted_by"].endswith("of the machine's nodes, not of the node_rates given")
    same = PLANNERS["round_robin"](trace_of(3), nodes=2, machine=machine(2, hidden=64), node_rates=[3, 3], **QUICK)
    assert "node_rates" not in same.prediction["predicted_by"]


@pytest.mark.parametrize("planner", ["mirror", "round_robin", "replicate", "row_split", "split_some"])
@pytest.mark.parametrize("num_nodes", [2, 3])
def test_plan_and_simulate_give_one_answer_by_rates_too(planner, num_nodes):
    """Of experts of another shape than the calibrated one; a layer call costs what the machine says."""
    trace = trace_of(5)
    here = machine(num_nodes, hidden=128).model_copy(update={"layer_overhead_s": 3e-5})
    extra = {"extra_memory": 0.3} if planner in ("replicate", "split_some") else {}
    plan = PLANNERS[planner](trace, nodes=num_nodes, machine=here, **extra, **QUICK)
    said = simulate(trace, plan, here, phase="decode", progress=False).prediction
    assert said["predicted_ms_per_token"] == pytest.approx(plan.prediction["predicted_ms_per_step"], rel=1e-5)
    assert said["predicted_by"] == plan.prediction["predicted_by"]
    assert said["read_gb_per_s"] == pytest.approx(here.read_gb_per_s)  # which replay predicts from


@pytest.mark.parametrize("efficiency", [1.0, 0.5])
def test_without_times_of_the_shape_contention_by_hand(efficiency):
    """Each node in turn is done, then the other goes on alone: written out for two nodes."""
    trace, here = trace_of(4, batch=2), machine(rates=(20.0, 10.0, 1.0), shares=(0.6, 0.1))
    plan = PLANNERS["round_robin"](trace, nodes=2, score=False, **QUICK)
    said = simulate(trace, plan, here, phase="decode", efficiency=efficiency, progress=False)
    total = 0.0
    for read in said.node_reads[said.phase_of_step == 1].reshape(-1, 2):
        first, last = sorted(read / (np.array([20.0, 10.0]) * 1e9 * efficiency))
        total += first / 0.6 + (last - first)
    assert said.prediction["predicted_ms_per_token"] == pytest.approx(1e3 * total / said.num_tokens)
    assert "0.60 of each while all 2 nodes read" in said.prediction["predicted_by"]
    free = here.model_copy(update={"contention": {}})
    alone = simulate(trace, plan, free, phase="decode", efficiency=efficiency, progress=False)
    assert alone.prediction["predicted_ms_per_token"] < said.prediction["predicted_ms_per_token"]


def test_the_share_of_numbers_of_nodes_that_were_not_calibrated():
    here = machine(3, shares=(0.8, 0.5))
    assert [here.read_share_of_nodes(n) for n in (1, 2, 3, 4)] == pytest.approx([1.0, 0.8, 0.5, 0.5])
    sparse = here.model_copy(update={"contention": {"read_share_of_3_nodes": 0.5}})
    assert sparse.read_share_of_nodes(2) == pytest.approx(0.75)


@pytest.mark.parametrize("hidden", [64, 128])
def test_interleaved_pages_take_what_remote_reads_cost(hidden):
    """Half of the bytes come from the other node at a quarter of the own rate: (1 + 4) / 2 of the time of the pieces.

    By calibrated times of the shape, and by read rates where another shape was calibrated; as the planner says too.
    """
    trace, here = trace_of(6), machine(hidden=hidden)
    nodes = tuple(
        node.model_copy(update={"remote_read_gb_per_s": {other.name: 5.0}})
        for node, other in zip(here.nodes, here.nodes[::-1], strict=True)
    )
    far = here.model_copy(update={"nodes": nodes})
    plan = PLANNERS["interleave"](trace, nodes=2, machine=far, **QUICK)
    pieces = PLANNERS["row_split"](trace, nodes=2, machine=far, **QUICK)
    said, local = (simulate(trace, each, far, phase="decode", progress=False) for each in (plan, pieces))
    assert said.prediction["remote_slowdown"] == pytest.approx(2.5)
    assert "remote_slowdown" not in local.prediction
    assert said.layer_step_s == pytest.approx(2.5 * local.layer_step_s)
    told, plain = said.prediction["predicted_ms_per_token"], local.prediction["predicted_ms_per_token"]
    assert told == pytest.approx(2.5 * plain)
    assert told == pytest.approx(plan.prediction["predicted_ms_per_step"], rel=1e-5)
    with pytest.raises(ValueError, match="machine m has no remote read rates of 2 nodes"):
        simulate(trace, plan, here, phase="decode", progress=False)
    assert simulate(trace, plan, phase="decode", progress=False).prediction is None
