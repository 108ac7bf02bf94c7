"""In the guest: a running engine goes over to other plans; all pages of every expert lie where the new plan says."""

from __future__ import annotations

import mmap
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_placement import nodes_of_pages

from moelab.domain.plan import Plan
from moelab.engine.engine import load
from moelab.engine.recorder import Recorder, header_of
from moelab.kernels.node_memory import promised_bytes
from moelab.migration import apply, moves

NUM_NODES = int(os.environ["NUM_NODES"])
MODEL = Path("/project/model")
PROMPT, NEW = [5, 80, 81], 3


@pytest.fixture(scope="module")
def engine():
    with load(MODEL, isa="avx2") as engine:
        yield engine


def plan_by_lot(engine, seed: int, share_cut: float = 0.3) -> Plan:
    """Every expert whole on a node by lot, or cut over two. One copy each: the guest has no Numba for dispatch."""
    spec, rng = engine.spec, np.random.default_rng(seed)
    units = -(-spec.moe_intermediate_size // 32)
    rows = []
    for layer in range(len(engine.routed)):
        for expert in range(spec.n_routed_experts):
            node = int(rng.integers(NUM_NODES))
            ends = [0, int(rng.integers(1, units)), units] if rng.random() < share_cut else [0, units]
            rows += [(layer, expert, a, b, (node + i) % NUM_NODES) for i, (a, b) in enumerate(pairwise(ends))]
    columns = dict(zip(("layer", "expert", "start", "stop", "tier"), zip(*rows, strict=True), strict=True))
    tiers = tuple(f"node{node}" for node in range(NUM_NODES))
    home = {"weight_format": engine.weight_format, "expert_bytes": (engine.expert_bytes,) * len(engine.routed)}
    model = {
        "name": engine.name, "model_type": spec.model_type, "num_layers": len(engine.routed),
        "num_experts": spec.n_routed_experts, "top_k": spec.num_experts_per_tok,
        "moe_intermediate_size": spec.moe_intermediate_size,
    }  # fmt: skip
    return Plan.model_validate(
        {"model": model, "tiers": tiers, "placements": columns, "format_of_tier": dict.fromkeys(tiers, home)}
    )


def pages_on_their_nodes(engine, plan: Plan) -> int:
    """Asks the kernel for every page of every copy; how many. The plan's copies, and no others, are there."""
    columns, num_pages = plan.placements.arrays(), 0
    for number, layer in enumerate(engine.routed):
        mine = columns["layer"] == number
        wanted = set(zip(*(columns[name][mine].tolist() for name in ("expert", "start", "stop", "tier")), strict=True))
        assert set(layer.placement.memory_of_copy) == wanted
        assert layer.placement.binding == ", ".join(f"node{node}" for node in range(NUM_NODES))
        for (*_, node), copy in layer.placement.memory_of_copy.items():
            assert copy.memory.ctypes.data % mmap.PAGESIZE == 0 or len(copy.memory) < mmap.PAGESIZE
            seen = nodes_of_pages(copy.memory)
            assert set(seen) == {node}
            num_pages += len(seen)
    return num_pages


def bytes_to_read(engine, trace) -> np.ndarray:
    """int64 [L, N]: of every step that was recorded each distinct expert once, from the nodes that have its pieces."""
    found = np.zeros((len(engine.routed), NUM_NODES), np.int64)
    for number, layer in enumerate(engine.routed):
        for step in np.unique(trace.tokens.step):
            chosen = set(trace.experts[trace.tokens.step == step, number].ravel().tolist())
            for (expert, *_, node), copy in layer.placement.memory_of_copy.items():
                found[number, node] += len(copy.memory) * (expert in chosen)
    return found


def test_without_a_plan_experts_lie_round_robin_and_rows_of_the_dense_path_are_shared(engine):
    for layer in engine.routed:
        for (expert, *_, node), copy in layer.placement.memory_of_copy.items():
            assert node == expert % NUM_NODES
            assert set(nodes_of_pages(copy.memory)) == {node}
    head = engine.model.lm_head.packed
    seen = nodes_of_pages(head.tiles)
    assert set(seen) == set(range(NUM_NODES))
    assert (np.diff(seen) >= 0).all()
    assert abs(np.bincount(seen) / len(seen) - 1 / NUM_NODES).max() < 0.1
    assert "rows shared out over the nodes, binding node0, node1" in engine.summary()["linear memory"]


def test_pages_of_every_expert_follow_the_plan(engine):
    """From round-robin to a plan, to another, and back: the same text, nodes read what they have of what is routed."""
    assert engine.pool.num_nodes == NUM_NODES
    assert not engine.pool.virtual
    expected = engine.generate(PROMPT, NEW, stop=()).token_ids
    total = len(engine.routed) * engine.spec.n_routed_experts * engine.expert_bytes
    moved, gone = [], []
    for seed in (1, 2, 1):
        plan = plan_by_lot(engine, seed)
        applied = apply(engine, plan, progress=False)
        moved.append(applied.copies_added)
        gone.append(applied.copies_removed)
        assert applied.num_nodes == NUM_NODES
        assert 0 < applied.peak_extra_bytes <= total // len(engine.routed)
        assert pages_on_their_nodes(engine, plan) * mmap.PAGESIZE >= total
        before = np.array([layer.bytes_of_node for layer in engine.routed])
        recorder = Recorder(header_of(engine, (), "none", "guest"), keep_text=False, writer=None)
        engine.observers.append(recorder.observe)  # as `moelab.record`, which needs the store: the guest has no Arrow
        assert engine.generate(PROMPT, NEW, stop=()).token_ids == expected
        engine.observers.remove(recorder.observe)
        trace = recorder.finish()
        read = np.array([layer.bytes_of_node for layer in engine.routed]) - before
        np.testing.assert_array_equal(read, bytes_to_read(engine, trace))
        assert (read.sum(0) > 0).all()
    assert min(moved) > 0
    assert moved[2] == gone[1]  # what went comes back, and no more


def test_a_failure_in_the_middle_leaves_every_page_where_it_was(engine, monkeypatch):
    plan = plan_by_lot(engine, 3)
    apply(engine, plan, progress=False)
    expected = engine.generate(PROMPT, NEW, stop=()).token_ids
    real, calls, copies = moves.NodePlacement, [], []

    def interrupted(*arguments, **choices):
        calls.append(1)
        if len(calls) == 4:
            assert all((nodes_of_pages(copy) >= 0).all() for copy in copies)  # filled, before they go
            raise KeyboardInterrupt
        placement = real(*arguments, **choices)
        copies.extend(placement.memory_of_copy[copy].memory for copy in placement.new_copies)
        return placement

    monkeypatch.setattr(moves, "NodePlacement", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply(engine, plan_by_lot(engine, 4), progress=False)
    assert len(calls) == 4
    pages_on_their_nodes(engine, plan)
    assert engine.generate(PROMPT, NEW, stop=()).token_ids == expected
    # Their mappings live, because `copies` holds them: it is the pages themselves that went.
    whole = [copy[: len(copy) // mmap.PAGESIZE * mmap.PAGESIZE] for copy in copies]
    assert sum(map(len, whole)) > 1 << 20
    assert not any((nodes_of_pages(copy) >= 0).any() for copy in whole if len(copy))


def test_a_node_without_room_is_refused_before_anything_moves(engine):
    """All of the last node's room is promised to somebody else."""
    from moelab.kernels.node_memory import room_bytes
    from moelab.kernels.pages import map_pages

    plan = plan_by_lot(engine, 5)
    apply(engine, plan, progress=False)
    placements = [layer.placement for layer in engine.routed]
    last = NUM_NODES - 1
    hog = map_pages(room_bytes(last) - (1 << 20), last)
    with pytest.raises(MemoryError, match=f"node{last}: expected room"):
        apply(engine, plan_by_lot(engine, 6), progress=False)
    assert [layer.placement for layer in engine.routed] == placements
    pages_on_their_nodes(engine, plan)
    del hog
    assert promised_bytes(last) < 64 << 20
    apply(engine, plan_by_lot(engine, 6), progress=False)


def test_loaded_straight_onto_the_nodes(engine):
    plan = plan_by_lot(engine, 7)
    expected = engine.generate(PROMPT, NEW, stop=()).token_ids
    with load(MODEL, isa="avx2", plan=plan) as placed:
        pages_on_their_nodes(placed, plan)
        assert placed.generate(PROMPT, NEW, stop=()).token_ids == expected
