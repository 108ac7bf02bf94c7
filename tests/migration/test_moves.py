"""Moves of layers between homes: every byte, one layer twice at most, the way back from any failure, memory returns."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from moelab.dispatch.c_face import dispatch_arguments
from moelab.kernels import ExpertArena, ExpertLayout, NodePlacement, Pool, RoutedExperts, isa_table
from moelab.kernels.pieces import num_units, piece_of
from moelab.migration import moves as moves_module
from moelab.migration.moves import Moves
from tests.kernels.random_experts import random_step
from tests.kernels.test_node_placement import random_copies

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
pytestmark = pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
LAYOUT, NUM_LAYERS, NUM_EXPERTS = ExpertLayout(160, 112, "int4_g32"), 4, 7


@pytest.fixture(scope="module")
def pool():
    with Pool() as alone:
        if alone.num_workers < 2:
            pytest.skip("one core only")
    with Pool(virtual_nodes=2) as pool:
        yield pool


def random_layers(pool, layout=LAYOUT, num_layers=NUM_LAYERS, num_experts=NUM_EXPERTS, seed=0):
    """Layers whose experts are random bytes in an arena each, and those bytes."""
    rng = np.random.default_rng(seed)
    layers, blocks = [], []
    for _ in range(num_layers):
        arena = ExpertArena(layout, num_experts)
        of_layer = rng.integers(0, 256, (num_experts, layout.expert_bytes), np.uint8)
        for expert in range(num_experts):
            arena[expert][:] = of_layer[expert]
        layers.append(RoutedExperts(layout, arena.addresses, NATIVE[0], pool=pool, owner=arena))
        blocks.append(of_layer)
    return layers, blocks


def some_copies(rng, num_layers=NUM_LAYERS):
    share_split, share_copied = rng.random(2)
    return [
        random_copies(rng, NUM_EXPERTS, num_units(LAYOUT), 2, share_split, share_copied) for _ in range(num_layers)
    ]  # fmt: skip


def assert_whole(layers, blocks, copies=None):
    """Every copy of every layer holds the bytes of its expert; the tables are those of the copies that were asked."""
    for number, (layer, of_layer) in enumerate(zip(layers, blocks, strict=True)):
        for expert, block in enumerate(of_layer):
            np.testing.assert_array_equal(layer.owner[expert], block)
        if layer.placement is None:
            np.testing.assert_array_equal(layer.address_of_expert, layer.owner.addresses)
            continue
        assert layer.placement is layer.owner
        held = layer.placement.memory_of_copy
        if copies is not None:
            assert set(held) == set(zip(*(column.tolist() for column in copies[number]), strict=True))
        for (expert, start, stop, _), memory in held.items():
            piece = piece_of(LAYOUT, start, stop)
            expected = np.empty(piece.num_bytes, np.uint8)
            for whole, own in ranges_by_hand(piece):
                expected[own] = of_layer[expert][whole]
            np.testing.assert_array_equal(memory.memory, expected)


def ranges_by_hand(piece):
    """By hand, from the layout: rows of gate_proj, of up_proj, of down_proj."""
    up = LAYOUT.projection_bytes(16, LAYOUT.hidden_size)
    down = LAYOUT.projection_bytes(16, LAYOUT.intermediate_size)
    first, rows = 2 * piece.first_group, (piece.num_bytes - piece.num_rows * down) // (2 * up)
    place = 0
    for offset, begin, size in (
        (LAYOUT.offsets[0], first * up, rows * up), (LAYOUT.offsets[1], first * up, rows * up),
        (LAYOUT.offsets[2], piece.first_row * down, piece.num_rows * down),
    ):  # fmt: skip
        yield slice(offset + begin, offset + begin + size), slice(place, place + size)
        place += size


class Ledger:
    """Bytes that copies hold, told by whoever takes and gives back memory: beside the figures of ``Moves``."""

    def __init__(self, monkeypatch, held):
        self.held = self.most = held
        from moelab.kernels import node_placement

        take, give, again = node_placement.take_memory, moves_module.give_back, moves_module.take_again

        def taken(sizes, memory_node):
            self.change(sum(sizes))
            return take(sizes, memory_node)

        def gave(copy):
            self.change(-len(copy.memory))
            return give(copy)

        def taken_again(copies, memory_node):
            copies = list(copies)
            self.change(sum(len(copy.memory) for copy in copies))
            again(copies, memory_node)

        monkeypatch.setattr(node_placement, "take_memory", taken)
        monkeypatch.setattr(moves_module, "give_back", gave)
        monkeypatch.setattr(moves_module, "take_again", taken_again)

    def change(self, num_bytes):
        self.held += num_bytes
        self.most = max(self.most, self.held)


@pytest.mark.parametrize("seed", range(6))
def test_there_and_back_from_a_failure_anywhere(pool, monkeypatch, seed):
    """Two plans by lot; then a third that fails at a point by lot. Its undo takes no more room than the way there."""
    rng = np.random.default_rng(seed)
    layers, blocks = random_layers(pool, seed=seed)
    step = random_step(rng, 3, 3, NUM_EXPERTS, LAYOUT.hidden_size)
    total = NUM_LAYERS * NUM_EXPERTS * LAYOUT.expert_bytes
    ledger = Ledger(monkeypatch, total)
    for _ in range(2):
        copies, before = some_copies(rng), ledger.held
        ledger.most = before
        moves = Moves(layers, pool, pool.memory_node_of_node)
        moves.go(copies, dispatch=dispatch_arguments)
        moves.commit()
        assert_whole(layers, blocks, copies)
        assert ledger.most - max(before, ledger.held) == moves.peak_extra_bytes
        assert ledger.held - before == moves.added_bytes - moves.removed_bytes
        assert ledger.held == sum(int(layer.placement.bytes_of_node.sum()) for layer in layers)
    placements = [layer.placement for layer in layers]
    outputs = [layer.forward(*step) for layer in layers]
    before, fails_at = ledger.held, int(rng.integers(NUM_LAYERS))
    ledger.most = before
    place, calls = RoutedExperts.place, []

    def stop(self, *arguments):
        calls.append(self)
        if len(calls) == fails_at + 1:
            raise KeyboardInterrupt
        place(self, *arguments)

    moves = Moves(layers, pool, pool.memory_node_of_node)
    with monkeypatch.context() as patch:
        patch.setattr(RoutedExperts, "place", stop)
        with pytest.raises(KeyboardInterrupt):
            moves.go(some_copies(rng), dispatch=dispatch_arguments)
    way_there = ledger.most
    assert moves.undo() == []
    assert ledger.most == way_there, "the way back took more room than the way there"
    assert ledger.held == before
    assert [layer.placement for layer in layers] == placements
    assert_whole(layers, blocks)
    for layer, output in zip(layers, outputs, strict=True):
        np.testing.assert_array_equal(layer.forward(*step), output)


def test_back_into_the_arenas(pool):
    layers, blocks = random_layers(pool)
    arenas = [layer.owner for layer in layers]
    moves = Moves(layers, pool, pool.memory_node_of_node)
    moves.go(some_copies(np.random.default_rng(3)), dispatch=dispatch_arguments)
    assert all(layer.placement is not None for layer in layers)
    assert moves.undo() == []
    assert [layer.owner for layer in layers] == arenas
    assert all(layer.placement is None for layer in layers)
    assert_whole(layers, blocks)


def test_a_layer_that_cannot_go_back_stays_whole_and_is_named(pool, monkeypatch):
    layers, blocks = random_layers(pool)
    rng = np.random.default_rng(5)
    first = some_copies(rng)
    moves = Moves(layers, pool, pool.memory_node_of_node)
    moves.go(first, dispatch=dispatch_arguments)
    moves.commit()
    second, turned = some_copies(rng), []
    moves = Moves(layers, pool, pool.memory_node_of_node)
    moves.go(second, dispatch=dispatch_arguments, on_filled=lambda: turned.append(1))
    full = [layer.placement for layer in layers][2]
    real = moves_module.take_again

    def refuse(copies, memory_node):
        copies = list(copies)
        if layers[2].placement is full and any(copy in stuck for copy in copies):
            raise MemoryError("node1: somebody was faster")
        real(copies, memory_node)

    stuck = next(each for each in moves._turned if each.number == 2).left.values()
    monkeypatch.setattr(moves_module, "take_again", refuse)
    assert moves.undo() == [2]
    assert_whole(layers, blocks, [second[2] if layer == 2 else first[layer] for layer in range(NUM_LAYERS)])


def test_room_is_asked_for_before_the_first_move(pool, monkeypatch):
    """One node that is short, as on a machine of several: nothing is taken, nothing moves."""
    layers, blocks = random_layers(pool)
    asked = []

    def check(wanted):
        asked.append(wanted)
        raise MemoryError("node1: expected room for more; got less")

    monkeypatch.setattr(moves_module, "check_rooms", check)
    monkeypatch.setattr(moves_module, "several_nodes", lambda: True)
    copies = some_copies(np.random.default_rng(1))
    moves = Moves(layers, pool, [0, 1])
    with pytest.raises(MemoryError, match="node1: expected room"):
        moves.go(copies, dispatch=dispatch_arguments)
    assert all(layer.placement is None for layer in layers)
    assert_whole(layers, blocks)
    wanted = np.zeros(2, np.int64)
    for of_layer in copies:
        for _, start, stop, node in zip(*(column.tolist() for column in of_layer), strict=True):
            wanted[node] += piece_of(LAYOUT, start, stop).num_bytes
    assert asked == [{0: wanted[0], 1: wanted[1]}]  # arenas lie nowhere: they make no room on a node


def test_layers_that_shrink_go_first(pool):
    """Copies that go from the last layer to the first: its room is free by the time it is needed."""
    layers, _ = random_layers(pool)
    units, experts = num_units(LAYOUT), np.arange(NUM_EXPERTS)
    zeros = np.zeros(NUM_EXPERTS, np.int64)
    single = (experts, zeros, zeros + units, zeros)
    double = tuple(
        np.concatenate([a, b]) for a, b in zip(single, (experts, zeros, zeros + units, zeros + 1), strict=True)
    )
    for copies in ([single] * 3 + [double], [double] + [single] * 3):
        moves = Moves(layers, pool, pool.memory_node_of_node)
        moves.go(copies, dispatch=dispatch_arguments)
        moves.commit()
    assert moves.num_added == moves.num_removed == NUM_EXPERTS
    assert moves.peak_extra_bytes == 0


def resident_bytes():
    file = Path("/proc/self/statm")
    if not file.is_file():
        pytest.skip("reads /proc")
    return int(file.read_text().split()[1]) * mmap.PAGESIZE


def test_one_layer_is_there_twice_and_its_memory_returns(pool):
    """Measured: 6 layers of 24 MB leave their arenas, are moved on, and go back after a failure."""
    layout, num_layers, num_experts = ExpertLayout(1024, 512, "bf16"), 6, 8
    layers, _ = random_layers(pool, layout, num_layers, num_experts)
    layer_bytes, units = num_experts * layout.expert_bytes, num_units(layout)
    experts, zeros = np.arange(num_experts), np.zeros(num_experts, np.int64)
    start = resident_bytes()
    for shift, ends in ((0, Moves.commit), (1, Moves.undo), (1, Moves.commit)):
        seen = []
        moves = Moves(layers, pool, pool.memory_node_of_node)
        copies = [(experts, zeros, zeros + units, (experts + shift) % 2)] * num_layers
        moves.go(copies, on_filled=lambda seen=seen: seen.append(resident_bytes()))
        assert moves.peak_extra_bytes == layer_bytes
        assert len(seen) == num_layers
        assert 0.9 * layer_bytes < max(seen) - start < 1.5 * layer_bytes
        assert abs(resident_bytes() - start) < 0.5 * layer_bytes
        ends(moves)
        assert abs(resident_bytes() - start) < 0.5 * layer_bytes


def test_experts_without_a_home_are_fetched(pool):
    """Adopted from an arena but for two; then those two come from outside, the others from where they are."""
    layers, blocks = random_layers(pool, num_layers=1)
    arena = layers[0].owner
    gone = np.isin(np.arange(NUM_EXPERTS), (1, 4))
    placement = NodePlacement.of_arena(arena, gone)
    layers[0].place(placement)
    layers[0].owner = placement
    np.testing.assert_array_equal(placement.addresses == 0, gone)
    x, ids, gates = random_step(np.random.default_rng(0), 2, 3, NUM_EXPERTS, LAYOUT.hidden_size)
    ids[:] = [[0, 2, 3], [6, 5, 0]]
    layers[0].forward(x, ids, gates)
    ids[1, 1] = 4
    with pytest.raises(ValueError, match="an expert without a home"):
        layers[0].forward(x, ids, gates)
    with pytest.raises(KeyError, match="expert 4 has no home"):
        placement[4]
    arena[1][:] = arena[4][:] = 0
    copies = some_copies(np.random.default_rng(7), 1)
    with pytest.raises(ValueError, match="nobody to fetch them from"):
        Moves(layers, pool, pool.memory_node_of_node).go(copies, dispatch=dispatch_arguments)
    moves = Moves(layers, pool, pool.memory_node_of_node)
    moves.go(copies, dispatch=dispatch_arguments, fetch=lambda layer, expert: blocks[layer][expert])
    assert moves.num_fetched == 2
    assert_whole(layers, blocks, copies)
