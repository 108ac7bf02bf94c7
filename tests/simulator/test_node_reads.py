"""Bytes of nodes that simulate counts: those of dispatch by hand, and those that the kernels read."""

from __future__ import annotations

import os
from itertools import pairwise

import numpy as np
import pytest

import moelab
from moelab import PLANNERS, simulate
from moelab.dispatch import assign
from moelab.domain.plan import Placements, Plan
from moelab.domain.trace import NO_EXPERT, Phase
from moelab.execution.execute import execute, prepare
from moelab.execution.folding import Folding
from moelab.execution.placement import place_on_nodes
from moelab.execution.steps import take_steps
from moelab.execution.weights import generated
from moelab.kernels import ExpertLayout, Pool, isa_table
from moelab.kernels.piece_bytes import bytes_of_pieces
from moelab.kernels.pieces import piece_of
from tests.seeded_traces import seeded_trace

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@pytest.mark.parametrize("planner", ["round_robin", "eplb", "mirror", "replicate", "row_split", "split_some", "anneal"])
@pytest.mark.parametrize("nodes", [2, 3])
def test_equal_dispatch_by_hand(planner, nodes):
    trace = seeded_trace(5, num_experts=12, num_requests=6, batch=2, unrouted=0.1, expert_bytes=(7200, 7200, 7200))
    options = {} if planner in ("round_robin", "mirror", "row_split") else {"extra_memory": 0.3}
    plan = PLANNERS[planner](trace, nodes=nodes, moe_intermediate_size=32 * 12, score=False, **options)
    columns = plan.placements.arrays()
    expected = np.zeros((len(np.unique(trace.tokens.step)), 3, nodes), np.int64)
    for index, step in enumerate(np.unique(trace.tokens.step)):
        for layer in range(3):
            ids = trace.experts[trace.tokens.step == step, layer]
            masks, sizes = [], []
            for expert in sorted(set(ids.ravel().tolist()) - {NO_EXPERT}):
                mine = (columns["layer"] == layer) & (columns["expert"] == expert)
                pieces = sorted(set(zip(columns["start"][mine], columns["stop"][mine], strict=True)))
                for start, stop in pieces:
                    held = mine & (columns["start"] == start) & (columns["stop"] == stop)
                    masks.append(sum(1 << int(tier) for tier in columns["tier"][held]))
                    sizes.append(7200 * int(stop) // 12 - 7200 * int(start) // 12)
            if masks:
                chosen = assign(masks, num_tiers=nodes, sizes=sizes)
                np.add.at(expected[index, layer], chosen.tier_of, sizes)
    result = simulate(trace, plan, progress=False)
    np.testing.assert_array_equal(result.node_reads, expected)
    assert list(result.bytes_of_node.values()) == expected.sum((0, 1)).tolist()
    assert sum(result.bytes_of_node.values()) == 7200 * result.misses
    assert result.dispatch_quality == "optimal in every layer-step"  # whole experts with copies are of one size
    decode = simulate(trace, plan, phase="decode", progress=False)
    is_decode = np.array(
        [(trace.tokens.phase[trace.tokens.step == s] == 1).all() for s in np.unique(trace.tokens.step)]
    )
    assert list(decode.bytes_of_node.values()) == expected[is_decode].sum((0, 1)).tolist()


def test_residents_are_read_by_no_node():
    trace = seeded_trace(6, num_experts=12, expert_bytes=(100, 100, 100))
    joint = PLANNERS["joint"](trace, nodes=2, fast_slots=6, extra_memory=0.2, score=False)
    result = simulate(trace, joint, progress=False)
    assert result.hit_rate_per_request > 0
    assert sum(result.bytes_of_node.values()) == 100 * result.misses


def test_a_search_that_is_cut_off_is_reported_with_its_bound():
    """Pieces of random sizes, all on five nodes, which cannot end together: too many to search, and said so."""
    trace = seeded_trace(
        2, num_layers=1, num_experts=12, top_k=12, num_requests=1, decode_tokens=2, expert_bytes=(61_000_000,)
    )
    rng, rows = np.random.default_rng(0), []
    for expert in range(12):
        cuts = [0, *np.sort(rng.permutation(np.arange(1, 61))[:3]).tolist(), 61]
        rows += [(0, expert, a, b, node) for a, b in pairwise(cuts) for node in range(5)]
    base = PLANNERS["row_split"](trace, nodes=5, moe_intermediate_size=32 * 61, score=False)
    names = ("layer", "expert", "start", "stop", "tier")
    columns = dict(zip(names, (tuple(column) for column in zip(*rows, strict=True)), strict=True))
    plan = base.model_copy(update={"placements": Placements(**columns)})
    result = simulate(trace, plan, phase="decode", progress=False)
    reads = result.node_reads[result.node_reads.any((1, 2))]
    assert "search cut off in" in result.dispatch_quality
    least = reads.sum(-1) / 5  # every piece may be read anywhere: no maximum is below the average
    seen = result.dispatch_excess[result.dispatch_excess.any(1)]
    expected = (reads.max(-1) / least - 1)[: len(seen)]
    assert (seen > 0).any()
    np.testing.assert_allclose(seen[seen > 0], expected[seen > 0], rtol=1e-9)


@pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
@pytest.mark.skipif(cores < 2, reason="one core only")
def test_the_engine_reads_what_simulate_says():
    """A replicated plan of nano, live: bytes that the kernels counted, and the same run simulated from its record."""
    capture = moelab.open_trace(moelab.shipped("nano/capture")).load(phase=Phase.DECODE)
    plan = PLANNERS["replicate"](capture, nodes=2, extra_memory=0.25, score=False)
    assert isinstance(plan, Plan)
    with moelab.load(moelab.shipped("nano/model"), virtual_nodes=2, activation="int8") as engine:
        moelab.apply(engine, plan, progress=False)
        before = np.array([layer.bytes_of_node[:2] for layer in engine.routed])
        with moelab.record(engine) as trace:
            engine.generate([[5, 80, 81], [400, 7]], 12, stop=())
        counted = np.array([layer.bytes_of_node[:2] for layer in engine.routed]) - before
    said = simulate(trace, plan, progress=False)
    np.testing.assert_array_equal(said.node_reads.sum(0), counted)


@pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
@pytest.mark.skipif(cores < 2, reason="one core only")
@pytest.mark.parametrize("seed", [0, 1])
def test_pieces_weigh_what_the_kernels_count(seed):
    """Nano cut by lot, some pieces on both nodes: bytes of memory and of reads, to the byte."""
    capture = moelab.open_trace(moelab.shipped("nano/capture")).load(phase=Phase.DECODE)
    cut = PLANNERS["row_split"](capture, nodes=2)
    rng, rows, units = np.random.default_rng(seed), [], cut.num_units
    for layer in range(cut.model.num_layers):
        for expert in range(cut.model.num_experts):
            border = int(rng.integers(1, units))
            for start, stop in ((0, border), (border, units)):
                nodes = rng.permutation(2)[: rng.integers(1, 3)].tolist()
                rows += [(layer, expert, start, stop, node) for node in nodes]
    names = ("layer", "expert", "start", "stop", "tier")
    columns = dict(zip(names, (tuple(column) for column in zip(*rows, strict=True)), strict=True))
    by_lot = Plan.model_validate(cut.model_dump() | {"placements": columns, "prediction": {}})
    with moelab.load(moelab.shipped("nano/model"), virtual_nodes=2, activation="int8") as engine:
        for plan in (cut, by_lot):
            moelab.apply(engine, plan, progress=False)
            before = np.array([layer.bytes_of_node[:2] for layer in engine.routed])
            with moelab.record(engine) as trace:
                engine.generate([[5, 80, 81], [400, 7]], 6, stop=())
            counted = np.array([layer.bytes_of_node[:2] for layer in engine.routed]) - before
            np.testing.assert_array_equal(simulate(trace, plan, progress=False).node_reads.sum(0), counted)
            held = sum(layer.placement.bytes_of_node for layer in engine.routed)
            if plan is cut:
                assert plan.prediction["bytes_per_node"] == held.tolist()


def test_pieces_of_a_partition_add_up_and_round_to_tiles():
    """Against the layout's own piece; foreign formats and sizes in proportion."""
    layout = ExpertLayout(720, 32 * 7, "int4_g32")
    known = {"hidden_size": 720, "intermediate_size": 32 * 7, "weight_format": "int4_g32"}
    start, stop = np.array([0, 2, 5]), np.array([2, 5, 7])
    whole = np.full(3, layout.expert_bytes)
    exact = bytes_of_pieces(whole, start, stop, 7, **known)
    assert exact.tolist() == [piece_of(layout, a, b).num_bytes for a, b in zip(start, stop, strict=True)]
    assert exact.sum() == layout.expert_bytes
    in_proportion = whole * stop // 7 - whole * start // 7
    assert (exact != in_proportion).any()
    for other in ({"hidden_size": None}, {"weight_format": "Q4_0"}, {"intermediate_size": None}):
        assert bytes_of_pieces(whole, start, stop, 7, **known | other).tolist() == in_proportion.tolist()
    assert bytes_of_pieces(whole + 1, start, stop, 7, **known).sum() == layout.expert_bytes + 1


@pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
@pytest.mark.skipif(cores < 2, reason="one core only")
@pytest.mark.parametrize("nodes", [2])
def test_kernels_of_a_shape_that_tiles_do_not_divide_count_the_same(nodes):
    """Seven units of 720 rows: no piece is its share of the expert. Whole, halved, replicated by lot; each step."""
    layout = ExpertLayout(720, 32 * 7, "int4_g32")
    trace = seeded_trace(8, num_experts=12, top_k=3, num_requests=4, expert_bytes=(layout.expert_bytes,) * 3)
    changes = {"hidden_size": 720, "moe_intermediate_size": 32 * 7, "quantization": "int4_g32"}
    trace = type(trace)(trace.header.model_copy(update=changes), trace.experts, trace.gate_weights, trace.tokens)
    base, rng, rows = PLANNERS["row_split"](trace, nodes=nodes, score=False), np.random.default_rng(1), []
    for layer in range(3):
        for expert in range(12):
            border = int(rng.integers(1, 8))
            for start, stop in ((0, border), (border, 7)):
                if start < stop:
                    rows += [(layer, expert, start, stop, int(n)) for n in rng.permutation(nodes)[: rng.integers(1, 3)]]
    names = ("layer", "expert", "start", "stop", "tier")
    columns = dict(zip(names, (tuple(column) for column in zip(*rows, strict=True)), strict=True))
    folding = Folding(3, 12, "")
    work = prepare(trace, take_steps(trace, None), folding, 720, layout.expert_bytes)
    for plan in (base, Plan.model_validate(base.model_dump() | {"placements": columns, "prediction": {}})):
        copies = place_on_nodes(plan, folding, nodes, 7)[0]
        with Pool(virtual_nodes=nodes) as pool:
            weights = generated(layout, 3, 12, isa=NATIVE[0], activation="int8", pool=pool, copies=copies)
            measured = execute(weights, work, pool)
            weights.close()
        counted = np.stack([counts.num_bytes for counts in measured.counts])
        said = simulate(trace, plan, progress=False)
        np.testing.assert_array_equal(counted[..., :nodes], said.node_reads)
        in_proportion = layout.expert_bytes * 3 // 7
        assert said.node_reads.sum() == layout.expert_bytes * said.misses
        assert piece_of(layout, 0, 3).num_bytes != in_proportion
