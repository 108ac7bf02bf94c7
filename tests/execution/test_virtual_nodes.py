"""Virtual nodes end to end: bytes where the placement says, outputs bit for bit those of one node, marked results."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import moelab
from moelab.domain.machine import Machine, NumaNode
from moelab.domain.plan import FastTier, Placements, Plan, PlanModel, TierFormat
from moelab.domain.trace import NO_EXPERT, Phase
from moelab.execution.check import check_bytes
from moelab.execution.execute import execute, prepare
from moelab.execution.folding import Folding
from moelab.execution.paired_bandwidth import imbalance, paired_bandwidth
from moelab.execution.placement import bytes_by_node, place_on_nodes
from moelab.execution.steps import take_steps
from moelab.execution.weights import generated, own
from moelab.kernels import ExpertLayout, Pool, isa_table

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
needs_native = pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
needs_two_cores = pytest.mark.skipif(cores < 2, reason="one core only")


@pytest.fixture(scope="module")
def capture():
    return moelab.open_trace(moelab.shipped("nano/capture")).load(phase=Phase.DECODE)


@pytest.fixture(scope="module")
def machine():
    node = NumaNode(name="node0", cores=(0, 1), memory_bytes=2**34, read_gb_per_s={2: 10.0})
    return Machine(name="paper", source="calibration", nodes=(node,), last_level_cache_bytes=32 << 20)


def plan_of(node_of_expert, num_nodes, *, fast=None, pieces=None):
    """A plan that places whole experts [L, E] on nodes; ``fast`` (layer, expert) lies on fast0 alone."""
    layers, experts = node_of_expert.shape
    layer, expert = np.divmod(np.arange(node_of_expert.size), experts)
    tiers = tuple(f"node{n}" for n in range(num_nodes)) + (() if fast is None else ("fast0",))
    tier = node_of_expert.ravel().copy()
    if fast is not None:
        tier[fast[0] * experts + fast[1]] = num_nodes
    whole = Placements.whole(layer, expert, tier, 4)
    if pieces is not None:  # this expert in two halves
        at = pieces[0] * experts + pieces[1]
        rows = [list(getattr(whole, name)) for name in ("layer", "expert", "start", "stop", "tier")]
        for column in rows:
            column.append(column[at])
        rows[3][at], rows[2][-1] = 2, 2
        whole = Placements(**dict(zip(("layer", "expert", "start", "stop", "tier"), map(tuple, rows), strict=True)))
    return Plan(
        model=PlanModel(
            name="toy", model_type="x", num_layers=layers, num_experts=experts, top_k=4, moe_intermediate_size=128
        ),
        tiers=tiers, placements=whole, keep_home=fast is None,
        fast_tiers=() if fast is None else (FastTier(tier="fast0", slots=1),),
        format_of_tier={t: TierFormat(weight_format="int4_g32", expert_bytes=(1,) * layers) for t in tiers},
    )  # fmt: skip


def test_placement_is_the_plans_or_round_robin():
    rng = np.random.default_rng(0)
    folding = Folding(3, 8, "")
    placed = rng.integers(0, 3, (3, 8))
    nodes, text = place_on_nodes(plan_of(placed, 3), folding, 3)
    np.testing.assert_array_equal(nodes, placed)
    assert text == "as the plan says"
    nodes, text = place_on_nodes(plan_of(np.zeros((3, 8), int), 1), folding, 2)
    np.testing.assert_array_equal(nodes, np.tile(np.arange(8) % 2, (3, 1)))
    assert text == "round-robin"
    nodes, _ = place_on_nodes(plan_of(placed, 3, fast=(1, 5)), folding, 3)
    assert nodes[1, 5] == 5 % 3, "an expert of the fast tier alone runs from RAM here"
    cut, _ = place_on_nodes(plan_of(placed, 3), Folding(2, 5, ""), 3)
    np.testing.assert_array_equal(cut, placed[:2, :5])


def test_what_a_replay_cannot_place_is_refused_by_name():
    placed = np.arange(24).reshape(3, 8) % 3
    folding = Folding(3, 8, "")
    with pytest.raises(ValueError, match=r"node0, node1, node2; expected at most the 2 nodes here"):
        place_on_nodes(plan_of(placed, 3), folding, 2)
    with pytest.raises(ValueError, match="cuts layer 2 expert 3 into pieces"):
        place_on_nodes(plan_of(placed, 3, pieces=(2, 3)), folding, 3)
    plan = plan_of(placed, 3)
    columns = {name: getattr(plan.placements, name) for name in ("layer", "expert", "start", "stop", "tier")}
    twice = Placements(
        layer=(*columns["layer"], 1), expert=(*columns["expert"], 6), start=(*columns["start"], 0),
        stop=(*columns["stop"], 4), tier=(*columns["tier"], 1 if placed[1, 6] != 1 else 0),
    )  # fmt: skip
    with pytest.raises(ValueError, match="2 replicas of layer 1 expert 6"):
        place_on_nodes(plan.model_copy(update={"placements": twice}), folding, 3)


def test_bytes_by_node_count_every_distinct_expert_once():
    ids = np.array([[[0, 3], [2, 2]], [[3, 1], [NO_EXPERT, 0]]], np.uint16)  # [T 2, L 2, K 2]
    nodes = np.array([[0, 1, 0, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(bytes_by_node(ids, nodes, 2, 10), [[10, 20], [10, 10]])


@needs_native
@needs_two_cores
@pytest.mark.parametrize("isa", NATIVE)
def test_bytes_are_where_the_placement_says_and_outputs_are_those_of_one_node(capture, isa):
    """Random placements, one of them empty on a node in some layers; nano's routing at a small expert shape."""
    header = capture.header
    layout = ExpertLayout(192, 96, "int4_g32")
    folding = Folding(header.num_layers, header.num_experts, "")
    work = prepare(capture, take_steps(capture, 24), folding, layout.hidden_size, layout.expert_bytes)
    outputs = []
    rng = np.random.default_rng(7)
    lopsided = np.zeros((header.num_layers, header.num_experts), np.int32)
    lopsided[0, 3] = 1
    placements = [None, rng.integers(0, 2, lopsided.shape).astype(np.int32), lopsided]
    for nodes in placements:
        with Pool(virtual_nodes=None if nodes is None else 2) as pool:
            weights = generated(layout, *lopsided.shape, isa=isa, activation="int8", pool=pool, node_of_expert=nodes)
            measured = execute(weights, work, pool, samples=100)
            check_bytes(weights, work, measured)
            outputs.append(measured.outputs)
            if nodes is None:
                assert weights.num_nodes == 1
            else:
                expected = sum(bytes_by_node(ids, nodes, 2, layout.expert_bytes) for ids in work.ids)
                np.testing.assert_array_equal(sum(counts.num_bytes for counts in measured.counts), expected)
                np.testing.assert_array_equal(
                    measured.read_bytes_of_node.sum(axis=1), np.roll(work.bytes_of_step, -(len(work.ids) // 2))
                )
                assert ((measured.read_s_of_node > 0) == (measured.read_bytes_of_node > 0)).all()
                table = paired_bandwidth("", measured, virtual_nodes=True, cache_resident=False, limited=True)
                for row in table.rows:
                    assert row.num_bytes == expected[row.layer, row.node]
                    assert (row.percent_of_read_limit is None) == (row.num_bytes == 0)
                assert [row.num_bytes for row in table.totals] == expected.sum(axis=0).tolist()
                assert 1 <= imbalance(measured) <= 2
            weights.close()
    assert imbalance(measured) > 1.8, "the last placement has nearly everything on one node"
    assert len(outputs[0]) > 10
    for other in outputs[1:]:
        assert other.keys() == outputs[0].keys()
        for at, y in other.items():
            np.testing.assert_array_equal(y, outputs[0][at])


@needs_native
@needs_two_cores
def test_own_weights_move_to_their_nodes_unchanged():
    model = moelab.shipped("nano/model")
    with Pool(virtual_nodes=2) as pool:
        whole = own(model, isa=NATIVE[0], activation="int8", pool=pool)
        shape = (len(whole.layers), len(whole.arenas[0]))
        nodes = np.random.default_rng(1).integers(0, 2, shape).astype(np.int32)
        moved = own(model, isa=NATIVE[0], activation="int8", pool=pool, node_of_expert=nodes)
        np.testing.assert_array_equal(moved.node_of_expert, nodes)
        for layer in range(shape[0]):
            for expert in range(shape[1]):
                np.testing.assert_array_equal(moved.arenas[layer][expert], whole.arenas[layer][expert])
        for weights in (whole, moved):
            weights.close()


@needs_native
@needs_two_cores
def test_counts_that_are_not_the_routings_stop_the_replay(capture):
    header = capture.header
    layout = ExpertLayout(64, 32, "int4_g32")
    folding = Folding(header.num_layers, header.num_experts, "")
    work = prepare(capture, take_steps(capture, 4), folding, 64, layout.expert_bytes)
    nodes = np.zeros((header.num_layers, header.num_experts), np.int32)
    with Pool(virtual_nodes=2) as pool:
        weights = generated(layout, *nodes.shape, isa=NATIVE[0], activation="int8", pool=pool, node_of_expert=nodes)
        measured = execute(weights, work, pool)
        measured.counts[1].num_bytes[0, 1] += 64
        with pytest.raises(RuntimeError, match=r"counted 64 bytes in step 1, layer 0, node1; expected 0"):
            check_bytes(weights, work, measured)
        weights.close()


@needs_native
@needs_two_cores
def test_command_marks_virtual_nodes(machine, tmp_path):
    machine.save(tmp_path / "machine.json")
    done = subprocess.run(
        [sys.executable, "-m", "moelab", "replay", "--expert-shape", "own", "--tokens", "16", "--virtual-nodes", "2",
         "--machine", str(tmp_path / "machine.json"), "--json"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["virtual_nodes"] is True
    assert row["num_nodes"] == 2
    assert row["placement"] == "round-robin"
    for name in ("gb_per_s_per_node", "read_limit_gb_per_s_per_node", "bytes_of_node"):
        assert len(row[name]) == 2
    assert sum(row["bytes_of_node"]) == row["layer_steps"] * row["executed_reads_per_layer_step"] * row["expert_bytes"]
    assert len(row["bandwidth"]["rows"]) == 2 * row["layers_run"]


def test_virtual_nodes_that_cannot_be_are_refused(capture, machine):
    with pytest.raises(ValueError, match="virtual_nodes is 2: expected a native isa, got numba"):
        moelab.replay(capture, machine=machine, isa="numba", virtual_nodes=2, progress=False)
    if NATIVE:
        with pytest.raises(ValueError, match=r"virtual_nodes: expected 1 to \d+"):
            moelab.replay(capture, machine=machine, isa=NATIVE[0], virtual_nodes=1000, progress=False)
        with pytest.raises(ValueError, match="expected at most num_workers, 1; got 2"):
            Pool(1, virtual_nodes=2)
