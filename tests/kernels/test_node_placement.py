"""Experts in pieces and copies on nodes: the bits of whole experts, and each node reads what dispatch gives it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.dispatch.c_face import dispatch_arguments
from moelab.dispatch.dispatch import dispatch, scratch_length
from moelab.kernels import (
    ACTIVATIONS_OF_FORMAT,
    NO_EXPERT,
    ExpertLayout,
    NodePlacement,
    Pool,
    RoutedExperts,
    isa_table,
)
from moelab.kernels.pieces import cut, num_units, piece_of
from tests.kernels.random_experts import random_arena, random_step

ISAS = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
MODES = [(f, a) for f, activations in ACTIVATIONS_OF_FORMAT.items() for a in activations]


@pytest.fixture(scope="module")
def pool():
    with Pool() as alone:
        if alone.num_workers < 2:
            pytest.skip("one core only")
    with Pool(virtual_nodes=2) as pool:
        yield pool


def random_copies(rng, num_experts: int, units: int, num_nodes: int, share_split: float, share_copied: float):
    """Every expert whole or in pieces, each piece on one node or several."""
    rows = []
    for expert in range(num_experts):
        inside = rng.permutation(np.arange(1, units))[: rng.integers(1, 4)] if rng.random() < share_split else []
        ends = [0, *sorted(int(end) for end in inside), units]
        for start, stop in pairwise(ends):
            nodes = rng.permutation(num_nodes)[: rng.integers(2, num_nodes + 1) if rng.random() < share_copied else 1]
            rows += [(expert, start, stop, int(node)) for node in nodes]
    return tuple(np.array(rows).T)


def placed(arena, layout, num_experts, copies, pool, isa, activation, slowness=None):
    placement = NodePlacement(
        layout, num_experts, copies, pool.memory_node_of_node, slowness=slowness,
        **dispatch_arguments(len(copies[0]), pool.num_nodes),
    )  # fmt: skip
    for expert in range(num_experts):
        placement.fill(expert, arena[expert])
    return RoutedExperts(layout, placement.addresses, isa, activation, pool, owner=placement, placement=placement)


def expected_bytes(placement, ids, num_experts, slowness):
    """By the Python face of dispatch, job after job as the header says."""
    jobs = [
        piece
        for expert in sorted(set(ids[ids < num_experts].tolist()))
        for piece in range(placement.piece_of_expert[expert], placement.piece_of_expert[expert + 1])
    ]
    masks, sizes = placement.nodes_of_piece[jobs], placement.piece_bytes[jobs]
    node, loads = np.zeros(len(jobs), np.int32), np.zeros(placement.num_nodes)
    scratch = np.zeros(scratch_length(len(jobs), placement.num_nodes), np.int64)
    assert dispatch(masks, sizes, slowness, node, loads, scratch) >= 0
    return np.bincount(node, sizes, minlength=placement.num_nodes).astype(np.int64)


@pytest.mark.parametrize(("weight_format", "activation"), MODES)
@pytest.mark.parametrize("isa", ISAS)
def test_pieces_and_copies_give_the_bits_of_whole_experts(pool, isa, weight_format, activation):
    if (isa, weight_format) == ("amx", "float32"):
        return
    for seed, (hidden, intermediate) in enumerate(((160, 112), (96, 250), (33, 40), (520, 64))):
        rng = np.random.default_rng(seed)
        layout, num_experts = ExpertLayout(hidden, intermediate, weight_format), 9
        arena = random_arena(layout, num_experts, seed)
        whole = RoutedExperts(layout, arena.addresses, isa, activation, pool, owner=arena)
        slowness = rng.uniform(1, 2, 2)
        for share_split, share_copied in ((0, 0), (0, 1), (1, 0), (0.5, 0.5)):
            copies = random_copies(rng, num_experts, num_units(layout), 2, share_split, share_copied)
            routed = placed(arena, layout, num_experts, copies, pool, isa, activation, slowness)
            total = np.zeros(2, np.int64)
            for num_tokens in (1, 3, 17):
                step = random_step(rng, num_tokens, 3, num_experts, hidden)
                np.testing.assert_array_equal(routed.forward(*step), whole.forward(*step))
                expected = expected_bytes(routed.placement, step[1], num_experts, slowness)
                np.testing.assert_array_equal(routed.placement.nodes_of_step(), expected)
                total += expected
            assert list(routed.bytes_of_node[:2]) == total.tolist()


@settings(max_examples=60, deadline=None)
@given(
    hidden=st.integers(1, 200), intermediate=st.integers(1, 300), seed=st.integers(0, 2**32 - 1),
    weight_format=st.sampled_from(list(ACTIVATIONS_OF_FORMAT)),
)  # fmt: skip
def test_pieces_partition_the_block(hidden, intermediate, seed, weight_format):
    """Any cut: every byte of the expert is in exactly one piece, in its place."""
    layout = ExpertLayout(hidden, intermediate, weight_format)
    rng, units = np.random.default_rng(seed), num_units(layout)
    block = rng.integers(0, 256, layout.expert_bytes).astype(np.uint8)
    inside = np.sort(rng.permutation(np.arange(1, units))[: rng.integers(0, 5)]).tolist()
    parts = []
    for start, stop in zip([0, *inside], [*inside, units], strict=True):
        piece = piece_of(layout, start, stop)
        out = np.zeros(piece.num_bytes, np.uint8)
        cut(layout, block, piece, out)
        up = (piece.num_bytes - piece.num_rows * layout.projection_bytes(16, intermediate)) // 2
        parts.append((out[:up], out[up : 2 * up], out[2 * up :]))
    joined = np.concatenate([np.concatenate([part[i] for part in parts]) for i in range(3)])
    np.testing.assert_array_equal(joined, block)


def test_copies_lie_apart_and_are_counted(pool):
    layout = ExpertLayout(128, 96, "int4_g32")
    copies = tuple(np.array([(0, 0, 3, 0), (0, 0, 3, 1), (1, 0, 1, 0), (1, 1, 3, 1), (2, 0, 3, 1)]).T)
    with NodePlacement(layout, 3, copies, [None, None], **dispatch_arguments(5, 2)) as placement:
        part = piece_of(layout, 0, 1).num_bytes
        assert part + piece_of(layout, 1, 3).num_bytes == layout.expert_bytes
        assert placement.bytes_of_node.tolist() == [layout.expert_bytes + part, 3 * layout.expert_bytes - part]
        for piece, node in ((0, 0), (0, 1), (1, 0), (2, 1), (3, 1)):
            placement.copy(piece, node)[:] = 16 * piece + node
        for piece, node in ((0, 0), (0, 1), (1, 0), (2, 1), (3, 1)):
            assert (placement.copy(piece, node) == 16 * piece + node).all()
        with pytest.raises(KeyError, match="node 1 has no copy of piece 1"):
            placement.copy(1, 1)
    with pytest.raises(ValueError, match="closed"):
        placement.copy(0, 0)


@pytest.mark.parametrize(
    ("copies", "text"),
    [
        ([(0, 0, 2, 0), (1, 0, 3, 0)], r"pieces of expert 0 are \[\[0, 2\]\], expected a partition of \[0, 3\)"),
        ([(0, 0, 2, 0), (0, 1, 3, 1), (1, 0, 3, 0)], r"pieces of expert 0 are \[\[0, 2\], \[1, 3\]\]"),
        ([(0, 0, 3, 0), (1, 0, 3, 0), (1, 0, 3, 0)], "a copy is given twice"),
        ([(0, 0, 3, 0), (1, 0, 3, 2)], "expected node 0..1; got 0..2"),
        ([(0, 0, 3, 0), (1, 0, 3, 0), (2, 0, 3, 0)], "expected expert 0..1; got 0..2"),
        ([(0, 0, 3, 0), (0, 0, 3, 1), (1, 0, 3, 0)], "several copies; give the address of dispatch"),
    ],
)
def test_refusals(copies, text):
    with pytest.raises(ValueError, match=text):
        NodePlacement(ExpertLayout(64, 96, "bf16"), 2, tuple(np.array(copies).T), [None, None])


def test_a_pool_of_other_nodes_is_refused(pool):
    layout = ExpertLayout(64, 96, "bf16")
    copies = tuple(np.array([(0, 0, 3, 0), (1, 0, 3, 2)]).T)
    placement = NodePlacement(layout, 2, copies, [None] * 3)
    with pytest.raises(ValueError, match="placement: expected the 2 nodes of the pool; got 3"):
        RoutedExperts(layout, placement.addresses, "generic", pool=pool, placement=placement)
    with pytest.raises(ValueError, match="expected a native isa; got numba"):
        RoutedExperts(layout, placement.addresses, "numba", pool=pool, placement=placement)


@pytest.mark.parametrize("num_nodes", [0, -1, 17, 2**32 + 2])
def test_the_library_refuses_numbers_of_nodes_that_there_are_not(pool, num_nodes):
    """Of a caller that fills the struct itself: nothing is computed, whoever is routed to."""
    layout = ExpertLayout(64, 96, "bf16")
    copies = tuple(np.array([(0, 0, 3, 0), (1, 0, 3, 1)]).T)
    arena = random_arena(layout, 2, 1)
    routed = placed(arena, layout, 2, copies, pool, "generic", "bf16")
    step = np.ones((1, 64), np.float32), np.array([[0, 1]], np.uint16), np.ones((1, 2), np.float32)
    expected = routed.forward(*step)
    routed.placement.struct.num_nodes = num_nodes
    for expert_ids in (step[1], np.full((1, 2), NO_EXPERT)):
        with pytest.raises(ValueError, match="bad shape"):
            routed.forward(step[0], expert_ids, step[2])
    routed.placement.struct.num_nodes = 2
    np.testing.assert_array_equal(routed.forward(*step), expected)


def test_a_changed_placement_keeps_what_stays_and_gives_the_rest_back(pool):
    """Copies that both have do not move; the others' pages return, and results stay bit for bit."""
    layout, num_experts = ExpertLayout(256, 96, "bf16"), 8
    arena = random_arena(layout, num_experts, 3)
    rng = np.random.default_rng(3)
    step = random_step(rng, 5, 3, num_experts, 256)
    expected = RoutedExperts(layout, arena.addresses, "generic", pool=pool).forward(*step)
    before = random_copies(rng, num_experts, 3, 2, 0.4, 0.4)
    routed = placed(arena, layout, num_experts, before, pool, "generic", "bf16")
    for _ in range(4):
        old = routed.placement
        copies = random_copies(rng, num_experts, 3, 2, 0.4, 0.4)
        copies = tuple(np.unique(np.stack(copies, axis=1), axis=0).T)
        new = NodePlacement(
            layout, num_experts, copies, pool.memory_node_of_node, keep=old, **dispatch_arguments(len(copies[0]), 2)
        )
        stay = set(old.memory_of_copy) & set(new.memory_of_copy)
        assert new.new_copies == set(new.memory_of_copy) - stay
        for copy in stay:
            assert new.memory_of_copy[copy] is old.memory_of_copy[copy]
        for expert in range(num_experts):
            new.fill(expert, old[expert])
        gone = {copy: old.memory_of_copy[copy].memory for copy in set(old.memory_of_copy) - stay}
        routed.place(new)
        assert old.release(new) == sum(map(len, gone.values()))
        for memory in gone.values():
            assert (memory[4096:-4096] == 0).all()
        np.testing.assert_array_equal(routed.forward(*step), expected)


def test_buffers_that_are_too_short_are_refused():
    copies = tuple(np.array([(0, 0, 3, 0), (0, 0, 3, 1), (1, 0, 3, 0)]).T)
    layout = ExpertLayout(64, 96, "bf16")
    with pytest.raises(ValueError, match="dispatch_scratch: expected 19 or more for these pieces; got 0"):
        NodePlacement(layout, 2, copies, [None, None], dispatch=1)
    for slowness in (np.ones(1), np.ones(3), np.array([1.0, 0.0])):
        with pytest.raises(ValueError, match="slowness: expected 2 positive numbers"):
            NodePlacement(layout, 2, copies, [None, None], slowness=slowness, **dispatch_arguments(3, 2))
