"""Virtual nodes end to end: bytes where the placement says, outputs bit for bit those of one node, marked results."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import moelab
from moelab.cli import main
from moelab.dispatch.c_face import dispatch_arguments
from moelab.domain.expert_times import BusyNodes, ExpertTimes
from moelab.domain.machine import Machine, NumaNode
from moelab.domain.model import ModelSpec
from moelab.domain.plan import FastTier, Placements, Plan, PlanModel, TierFormat
from moelab.domain.plan_copies import whole_on
from moelab.domain.trace import NO_EXPERT, Phase
from moelab.execution.calibrated import calibrated_steps, times_for
from moelab.execution.check import check_bytes, max_relative_error
from moelab.execution.execute import execute, prepare
from moelab.execution.folding import Folding
from moelab.execution.paired_bandwidth import imbalance, paired_bandwidth
from moelab.execution.placement import place_on_nodes
from moelab.execution.served import served
from moelab.execution.steps import take_steps
from moelab.execution.weights import generated, own
from moelab.kernels import ExpertArena, ExpertLayout, NodePlacement, Pool, isa_table
from moelab.kernels.pages import several_nodes

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


def nodes_of(copies):
    """[L, E] of copies that are whole and one each."""
    for expert, start, stop, _ in copies:
        assert (start == 0).all()
        assert (stop == 4).all()
        np.testing.assert_array_equal(expert, np.arange(len(expert)))
    return np.stack([node for *_, node in copies])


def test_placement_is_the_plans_or_round_robin():
    rng = np.random.default_rng(0)
    folding = Folding(3, 8, "")
    placed = rng.integers(0, 3, (3, 8))
    copies, text = place_on_nodes(plan_of(placed, 3), folding, 3, 4)
    np.testing.assert_array_equal(nodes_of(copies), placed)
    assert text == "as the plan says"
    copies, text = place_on_nodes(plan_of(np.zeros((3, 8), int), 1), folding, 2, 4)
    np.testing.assert_array_equal(nodes_of(copies), np.tile(np.arange(8) % 2, (3, 1)))
    assert text == "round-robin"
    copies, _ = place_on_nodes(plan_of(placed, 3, fast=(1, 5)), folding, 3, 4)
    assert nodes_of(copies)[1, 5] == 5 % 3, "an expert of the fast tier alone runs from RAM here"
    copies, _ = place_on_nodes(plan_of(placed, 3), Folding(2, 5, ""), 3, 4)
    np.testing.assert_array_equal(nodes_of(copies), placed[:2, :5])


def test_pieces_and_copies_of_a_plan():
    placed = np.arange(24).reshape(3, 8) % 3
    folding = Folding(3, 8, "")
    with pytest.raises(ValueError, match=r"node0, node1, node2; expected at most the 2 nodes here"):
        place_on_nodes(plan_of(placed, 3), folding, 2, 4)
    halves, _ = place_on_nodes(plan_of(placed, 3, pieces=(2, 3)), folding, 3, 4)
    at, node = halves[2][0] == 3, placed[2, 3]
    assert [tuple(row) for row in np.stack(halves[2], axis=1)[at].tolist()] == [(3, 0, 2, node), (3, 2, 4, node)]
    wider, _ = place_on_nodes(plan_of(placed, 3, pieces=(2, 3)), folding, 3, 64)  # at another expert shape
    assert wider[2][1].tolist() == [0, 0, 0, 0, 32, 0, 0, 0, 0]
    one, _ = place_on_nodes(plan_of(placed, 3, pieces=(2, 3)), folding, 3, 1)  # too narrow to be cut
    assert len(one[2][0]) == 8
    plan = plan_of(placed, 3)
    columns = {name: getattr(plan.placements, name) for name in ("layer", "expert", "start", "stop", "tier")}
    twice = Placements(
        layer=(*columns["layer"], 1), expert=(*columns["expert"], 6), start=(*columns["start"], 0),
        stop=(*columns["stop"], 4), tier=(*columns["tier"], 1 if placed[1, 6] != 1 else 0),
    )  # fmt: skip
    copies, _ = place_on_nodes(plan.model_copy(update={"placements": twice}), folding, 3, 4)
    assert (copies[1][0] == 6).sum() == 2
    assert [len(of_layer[0]) for of_layer in copies] == [8, 9, 8]


def test_served_counts_every_distinct_expert_once():
    layout = ExpertLayout(64, 96, "bf16")
    ids = np.array([[0, 3], [3, 1], [NO_EXPERT, 0]], np.uint16)
    with ExpertArena(layout, 4) as arena:
        got = served(arena, ids)
        np.testing.assert_array_equal(got.addresses, arena.addresses[[0, 1, 3]])
        assert got.bytes_of_node(1).tolist() == [3 * layout.expert_bytes]
        assert len(served(arena, np.full((2, 2), NO_EXPERT)).addresses) == 0
    # 0 whole on node 0; 1 on both; 2 on node 1; 3 in a third on node 0 and two thirds on node 1.
    copies = np.array([(0, 0, 3, 0), (1, 0, 3, 0), (1, 0, 3, 1), (2, 0, 3, 1), (3, 0, 1, 0), (3, 1, 3, 1)])
    placement = NodePlacement(layout, 4, tuple(copies.T), [None, None], **dispatch_arguments(6, 2))
    got = served(placement, ids)
    part = placement.pieces[3].num_bytes
    # The copy of 1 on node 1 serves: 1 + 1/3 there would be 2 + 1/3 here.
    assert got.bytes_of_node(2).tolist() == [layout.expert_bytes + part, 2 * layout.expert_bytes - part]
    addresses, nodes = got.blocks(part)
    assert (np.bincount(nodes) * part <= got.bytes_of_node(2)).all()
    assert len(addresses) == sum(int(size) // part for size in got.num_bytes)
    assert len(np.unique(addresses)) == len(addresses)


def by_hand(ids, node_of_expert, expert_bytes):
    """[L, 2] of a step [T, L, K]: every distinct expert once, on its node."""
    out = np.zeros((ids.shape[1], 2), np.int64)
    for layer in range(ids.shape[1]):
        for expert in set(ids[:, layer].ravel().tolist()) - {NO_EXPERT}:
            out[layer, node_of_expert[layer, expert]] += expert_bytes
    return out


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
            copies = None if nodes is None else [whole_on(of_layer, 3) for of_layer in nodes]
            weights = generated(layout, *lopsided.shape, isa=isa, activation="int8", pool=pool, copies=copies)
            measured = execute(weights, work, pool, samples=100)
            check_bytes(weights, work, measured)
            outputs.append(measured.outputs)
            if nodes is None:
                assert weights.num_nodes == 1
            else:
                expected = sum(by_hand(ids, nodes, layout.expert_bytes) for ids in work.ids)
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
        copies = [whole_on(of_layer, 4) for of_layer in nodes]
        moved = own(model, isa=NATIVE[0], activation="int8", pool=pool, copies=copies)
        np.testing.assert_array_equal([arena.nodes_of_piece - 1 for arena in moved.arenas], nodes)
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
        copies = [whole_on(of_layer, 1) for of_layer in nodes]
        weights = generated(layout, *nodes.shape, isa=NATIVE[0], activation="int8", pool=pool, copies=copies)
        measured = execute(weights, work, pool)
        measured.counts[1].num_bytes[0, 1] += 64
        with pytest.raises(RuntimeError, match=r"counted 64 bytes in step 1, layer 0, node1; expected 0"):
            check_bytes(weights, work, measured)
        weights.close()


@needs_native
@needs_two_cores
def test_command_marks_virtual_nodes(machine, tmp_path, capfd):
    machine.save(tmp_path / "machine.json")
    options = ["--expert-shape", "own", "--tokens", "16", "--virtual-nodes", "2", "--json"]
    assert main(["replay", *options, "--machine", str(tmp_path / "machine.json")]) == 0
    (row,) = json.loads(capfd.readouterr().out)["rows"]
    assert row["virtual_nodes"] is True
    assert row["num_nodes"] == 2
    assert row["placement"] == "round-robin"
    for name in ("gb_per_s_per_node", "read_limit_gb_per_s_per_node", "bytes_of_node"):
        assert len(row[name]) == 2
    assert sum(row["bytes_of_node"]) == row["layer_steps"] * row["executed_reads_per_layer_step"] * row["expert_bytes"]
    assert len(row["bandwidth"]["rows"]) == 2 * row["layers_run"]


@needs_native
@needs_two_cores
@pytest.mark.skipif(several_nodes(), reason="needs a machine of one node")
def test_a_plan_of_two_nodes_takes_two_virtual_ones(capture, machine):
    plan = moelab.PLANNERS["round_robin"](capture, nodes=2, score=False)
    found = moelab.replay(capture, plan, machine=machine, expert_shape="own", tokens=2, isa=NATIVE[0], progress=False)
    assert (found.rows[0].num_nodes, found.rows[0].virtual_nodes) == (2, True)
    assert found.rows[0].placement == "as the plan says"
    assert any("2 virtual nodes taken, because the plan has more" in note for note in found.notes)


def test_virtual_nodes_that_cannot_be_are_refused(capture, machine):
    with pytest.raises(ValueError, match="virtual_nodes is 2: expected a native isa, got numba"):
        moelab.replay(capture, machine=machine, isa="numba", virtual_nodes=2, progress=False)
    if NATIVE:
        with pytest.raises(ValueError, match=r"virtual_nodes: expected 1 to \d+"):
            moelab.replay(capture, machine=machine, isa=NATIVE[0], virtual_nodes=1000, progress=False)
        with pytest.raises(ValueError, match="expected at most num_workers, 1; got 2"):
            Pool(1, virtual_nodes=2)


@needs_native
@needs_two_cores
@pytest.mark.parametrize("isa", NATIVE)
def test_replicas_and_pieces_execute_with_the_bits_of_one_node(capture, isa):
    """Nano's routing under a random plan of halves, replicas and whole experts: outputs, and bytes of every node."""
    header = capture.header
    layout = ExpertLayout(192, 96, "int4_g32")
    folding = Folding(header.num_layers, header.num_experts, "")
    work = prepare(capture, take_steps(capture, 24), folding, layout.hidden_size, layout.expert_bytes)
    rng = np.random.default_rng(9)
    copies = []
    for _ in range(header.num_layers):
        rows = []
        for expert in range(header.num_experts):
            kind = rng.integers(3)
            if kind == 0:
                rows += [(expert, 0, 1, 0), (expert, 1, 3, 1)]
            else:
                rows += [(expert, 0, 3, int(node)) for node in rng.permutation(2)[: int(kind)]]
        copies.append(tuple(np.array(rows).T))
    outputs = []
    for nodes, of_layers in ((None, None), (2, copies)):
        with Pool(virtual_nodes=nodes) as pool:
            shape = (header.num_layers, header.num_experts)
            weights = generated(layout, *shape, isa=isa, activation="int8", pool=pool, copies=of_layers)
            measured = execute(weights, work, pool, samples=100)
            check_bytes(weights, work, measured)
            outputs.append(measured.outputs)
            if of_layers is not None:
                assert max_relative_error(weights, work, measured, 3e-2) < 3e-2
                assert sum(counts.num_bytes.sum() for counts in measured.counts) == work.bytes_of_step.sum()
                assert imbalance(measured) < 1.2, "replicas go to the lighter node"
            weights.close()
    assert outputs[0].keys() == outputs[1].keys()
    for at, y in outputs[0].items():
        np.testing.assert_array_equal(outputs[1][at], y)


def calibrated_machine(num_nodes, workers, layout, kernel):
    """Nodes of 20 GB/s alone and 15 each while both read; an expert takes 1 ms, and 1.6 ms for two tokens."""
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=2**33, read_gb_per_s={1: 20.0}) for n in range(num_nodes)
    )
    times = ExpertTimes(
        kernel=kernel, hidden_size=layout.hidden_size, intermediate_size=layout.intermediate_size,
        expert_bytes=layout.expert_bytes, workers_of_node=workers, layer_s=2e-5, token_s=1e-5,
        expert_s={1: 1e-3, 2: 1.6e-3}, read_gb_per_s=20.0, residual=0.0, num_calls=1,
        busy={2: BusyNodes(read_gb_per_s=15.0, kernel_share=0.8)},
    )  # fmt: skip
    return Machine(name="made up", source="calibration", nodes=nodes, expert_times=(times,))


@needs_native
@needs_two_cores
def test_calibrated_times_are_predicted_by_what_will_run(capture):
    """Beside a twin that goes through the kernels' own tables: K experts of one token a step, the slowest node decides.

    Both nodes busy: an expert takes 1 ms / 0.8, because reads (small experts) are next to nothing; alone 1 ms.
    """
    layout = ExpertLayout(256, 128, "int4_g32")
    folding = Folding(2, 48, "two layers")
    rng = np.random.default_rng(0)
    with Pool(2, virtual_nodes=2) as pool:
        copies = [whole_on(rng.integers(0, 2, 48), 4) for _ in range(2)]
        weights = generated(layout, 2, 48, isa=NATIVE[0], activation="int8", pool=pool, copies=copies)
        kernel = f"{NATIVE[0]}/int4_g32/int8"
        machine = calibrated_machine(2, 1, layout, kernel)
        times = times_for(machine, weights, pool, kernel)
        assert times is not None
        assert times_for(machine, weights, pool, f"{NATIVE[0]}/int4_g32/bf16") is None
        assert times_for(calibrated_machine(2, 2, layout, kernel), weights, pool, kernel) is None
        assert times_for(calibrated_machine(1, 1, layout, kernel), weights, pool, kernel) is None
        work = prepare(capture, take_steps(capture, 12), folding, layout.hidden_size, layout.expert_bytes)
        predicted = calibrated_steps(times, weights, work)
        of_step = []
        for ids in work.ids:
            total = 0.0
            for layer in range(2):
                on_node = np.bincount(copies[layer][3][np.unique(ids[:, layer])], minlength=2)
                less, more = sorted(on_node.tolist())
                total += 2e-5 + len(ids) * 1e-5 + 1e-3 * (less / 0.8 + (more - less))
            of_step.append(1e3 * total / len(ids))
        assert predicted.ms_per_token() == pytest.approx(np.median(of_step), rel=1e-3)
        slow = predicted.ms_per_token(
            2 * layout.expert_bytes / 5e-3 / 1e9
        )  # a read of 5 ms decides while both are busy
        assert slow > predicted.ms_per_token()
        weights.close()


@needs_native
@needs_two_cores
@pytest.mark.skipif(several_nodes(), reason="needs a machine of one node")
def test_replay_says_what_calibrated_times_predict(capture, tmp_path):
    kernel = f"{NATIVE[0]}/int4_g32/int8"
    spec = ModelSpec.preset("olmoe-1b-7b")
    layout = ExpertLayout(spec.hidden_size, spec.moe_intermediate_size, "int4_g32")
    plan = moelab.PLANNERS["round_robin"](capture, nodes=2, score=False)
    machine = calibrated_machine(2, 1, layout, kernel)
    told = []
    found = moelab.replay(
        capture, plan, machine=machine, expert_shape="olmoe-1b-7b", tokens=6, isa=NATIVE[0], progress=False,
        on_prediction=lambda name, prediction: told.append(prediction),
    )  # fmt: skip
    own, shape = found.rows
    assert own.predicted_ms_per_token_calibrated is None  # nobody calibrated nano's own shape
    assert shape.calibrated_times == machine.expert_times[0].name
    assert shape.predicted_ms_per_token_calibrated_stored == told[1].calibrated.ms_per_token()
    assert shape.predicted_ms_per_token_calibrated == told[1].calibrated.ms_per_token(shape.read_limit_gb_per_s)
    assert found.predictions[1]["predicted_ms_per_token_calibrated"] == shape.predicted_ms_per_token_calibrated_stored
    # Six layers of 4 experts of a millisecond, 2 to 4 of them on the fuller node.
    assert 6 * 2 < shape.predicted_ms_per_token_calibrated_stored < 6 * 5.1
    lines = dict((label, texts) for label, *texts in found.table())
    assert lines["the same by calibrated times, stored"][0] == "not calibrated for this"
    assert lines["the same by calibrated times, stored"][1].startswith(
        f"{shape.predicted_ms_per_token_calibrated_stored:.3f}"
    )
