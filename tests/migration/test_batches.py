"""Layers that move in batches of experts: no more than was allowed, whole after each batch, back from any failure."""

from __future__ import annotations

import numpy as np
import pytest

from moelab.dispatch.c_face import dispatch_arguments
from moelab.kernels import ExpertLayout, NodePlacement, RoutedExperts
from moelab.kernels.pieces import num_units, piece_of
from moelab.migration import moves as moves_module
from moelab.migration.batches import batches
from moelab.migration.moves import Moves
from tests.kernels.random_experts import random_step
from tests.migration.test_moves import (
    LAYOUT,
    NUM_EXPERTS,
    NUM_LAYERS,
    Ledger,
    assert_whole,
    pool,
    pytestmark,
    random_layers,
    resident_bytes,
    some_copies,
)

__all__ = ["pool", "pytestmark"]  # the fixture, and what skips without native kernels


def most_of_one_expert(layers, copies):
    """Bytes of the new copies of the expert that adds most, by hand."""
    worst = 0
    for layer, of_layer in zip(layers, copies, strict=True):
        sizes = np.zeros(NUM_EXPERTS, np.int64)
        for expert, start, stop, node in zip(*(column.tolist() for column in of_layer), strict=True):
            if (expert, start, stop, node) not in layer.placement.memory_of_copy:
                sizes[expert] += piece_of(LAYOUT, start, stop).num_bytes
        worst = max(worst, int(sizes.max()))
    return worst


def on_nodes(pool, rng, seed):
    layers, blocks = random_layers(pool, seed=seed)
    moves = Moves(layers, pool, pool.memory_node_of_node)
    moves.go(some_copies(rng), dispatch=dispatch_arguments)
    moves.commit()
    return layers, blocks


@pytest.mark.parametrize("seed", range(8))
def test_never_more_than_was_allowed_and_back_from_a_failure_anywhere(pool, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    layers, blocks = on_nodes(pool, rng, seed)
    step = random_step(rng, 3, 3, NUM_EXPERTS, LAYOUT.hidden_size)
    ledger = Ledger(monkeypatch, sum(int(layer.placement.bytes_of_node.sum()) for layer in layers))
    copies, before = some_copies(rng), ledger.held
    whole = Moves(layers, pool, pool.memory_node_of_node)
    expected = whole.differences(copies)
    allowed = int(most_of_one_expert(layers, copies) * rng.uniform(1, 2))
    filled, done = [], []
    moves = Moves(layers, pool, pool.memory_node_of_node, extra_bytes=allowed)
    moves.go(
        copies, dispatch=dispatch_arguments, on_filled=lambda: filled.append(ledger.held),
        on_layer=lambda: done.append(len(filled)),
    )  # fmt: skip
    moves.commit()
    assert_whole(layers, blocks, copies)
    assert ledger.most - max(before, ledger.held) == moves.peak_extra_bytes <= allowed
    assert len(done) == NUM_LAYERS
    assert len(filled) == done[-1] > NUM_LAYERS
    assert moves.added_bytes == sum(int(each.added.sum()) for each in expected)
    assert moves.removed_bytes == sum(int(each.removed.sum()) for each in expected)
    assert moves.num_added + moves.num_kept == sum(len(of_layer[0]) for of_layer in copies)

    placements = [layer.placement for layer in layers]
    outputs = [layer.forward(*step) for layer in layers]
    copies, before = some_copies(rng), ledger.held
    allowed = most_of_one_expert(layers, copies)
    num_moves = len(Moves(layers, pool, pool.memory_node_of_node, extra_bytes=allowed).in_batches(
        whole.differences(copies)
    ))  # fmt: skip
    fails_at, calls, place = int(rng.integers(num_moves)), [], RoutedExperts.place

    def stop(self, *arguments):
        calls.append(self)
        if len(calls) == fails_at + 1:
            raise KeyboardInterrupt
        place(self, *arguments)

    ledger.most = before
    moves = Moves(layers, pool, pool.memory_node_of_node, extra_bytes=allowed)
    with monkeypatch.context() as patch:
        patch.setattr(RoutedExperts, "place", stop)
        with pytest.raises(KeyboardInterrupt):
            moves.go(copies, dispatch=dispatch_arguments)
    way_there = ledger.most
    assert moves.undo() == []
    assert ledger.most == way_there, "the way back took more room than the way there"
    assert ledger.held == before
    assert [layer.placement for layer in layers] == placements
    assert_whole(layers, blocks)
    for layer, output in zip(layers, outputs, strict=True):
        np.testing.assert_array_equal(layer.forward(*step), output)


def test_a_layer_that_cannot_go_back_stays_whole_where_a_batch_left_it(pool, monkeypatch):
    """The second of its batches is stuck: the first stays too, because copies of both are gone or new."""
    rng = np.random.default_rng(2)
    layers, blocks = on_nodes(pool, rng, 2)
    first = [layer.placement for layer in layers]
    second = some_copies(rng)
    moves = Moves(layers, pool, pool.memory_node_of_node, extra_bytes=most_of_one_expert(layers, second))
    moves.go(second, dispatch=dispatch_arguments)
    of_layer = [each for each in moves._turned if each.number == 2]
    assert len(of_layer) > 2
    stuck, real = list(of_layer[1].left.values()), moves_module.take_again

    def refuse(copies, memory_node):
        copies = list(copies)
        if any(copy is each for copy in copies for each in stuck):
            raise MemoryError("node1: somebody was faster")
        real(copies, memory_node)

    monkeypatch.setattr(moves_module, "take_again", refuse)
    assert moves.undo() == [2]
    assert [layer.placement for number, layer in enumerate(layers) if number != 2] == [*first[:2], *first[3:]]
    assert layers[2].placement is of_layer[1].new
    assert_whole(layers, blocks)


def test_measured(pool):
    """Two layers of 25 MB change nodes with 4 MB allowed: the resident size follows, and returns."""
    layout, num_layers, num_experts = ExpertLayout(1024, 512, "bf16"), 2, 8
    layers, _ = random_layers(pool, layout, num_layers, num_experts)
    layer_bytes, units = num_experts * layout.expert_bytes, num_units(layout)
    experts, zeros = np.arange(num_experts), np.zeros(num_experts, np.int64)
    first = Moves(layers, pool, pool.memory_node_of_node)
    first.go([(experts, zeros, zeros + units, experts % 2)] * num_layers)
    first.commit()
    start, allowed = resident_bytes(), layout.expert_bytes + layout.expert_bytes // 4
    seen = []
    moves = Moves(layers, pool, pool.memory_node_of_node, extra_bytes=allowed)
    moves.go(
        [(experts, zeros, zeros + units, (experts + 1) % 2)] * num_layers,
        on_filled=lambda: seen.append(resident_bytes()),
    )
    assert len(seen) == num_layers * num_experts
    assert moves.peak_extra_bytes == layout.expert_bytes
    assert 0.5 * layout.expert_bytes < max(seen) - start < 0.3 * layer_bytes
    moves.commit()
    assert abs(resident_bytes() - start) < 0.3 * layer_bytes


def test_experts_without_a_home_come_in_batches_too(pool):
    rng = np.random.default_rng(3)
    layers, blocks = on_nodes(pool, rng, 3)
    full = layers[0].placement
    gone = np.isin(np.arange(NUM_EXPERTS), (1, 4))
    rows = np.array([copy for copy in full.memory_of_copy if not gone[copy[0]]])
    left = NodePlacement(
        LAYOUT, NUM_EXPERTS, tuple(rows.T), pool.memory_node_of_node, keep=full, homeless=gone,
        **dispatch_arguments(len(rows), 2),
    )  # fmt: skip
    layers[0].place(left)
    layers[0].owner = left
    copies = some_copies(rng, 1)
    only = layers[:1]
    moves = Moves(only, pool, pool.memory_node_of_node, extra_bytes=most_of_one_expert(only, copies))
    moves.go(copies, dispatch=dispatch_arguments, fetch=lambda layer, expert: blocks[layer][expert])
    moves.commit()
    assert moves.num_fetched == 2
    assert_whole(only, blocks[:1], copies)


@pytest.mark.parametrize("ends", [Moves.commit, Moves.undo])
@pytest.mark.parametrize("seed", range(4))
def test_out_of_the_arenas_in_batches(pool, monkeypatch, seed, ends):
    """Copies wanted on node 0 move as well: an arena is on no node, though whoever waits in it is said to be there."""
    rng = np.random.default_rng(seed)
    layers, blocks = random_layers(pool, seed=seed)
    arenas = [layer.owner for layer in layers]
    memory = [arena.memory for arena in arenas]
    copies = some_copies(rng)
    total = NUM_LAYERS * NUM_EXPERTS * LAYOUT.expert_bytes
    ledger = Ledger(monkeypatch, total)
    allowed = 2 * LAYOUT.expert_bytes
    moves = Moves(layers, pool, pool.memory_node_of_node, extra_bytes=allowed)
    filled = []
    moves.go(copies, dispatch=dispatch_arguments, on_filled=lambda: filled.append(1))
    assert len(filled) > 2 * NUM_LAYERS
    assert_whole(layers, blocks, copies)
    assert ledger.most - max(total, ledger.held) == moves.peak_extra_bytes <= allowed
    assert ledger.held - total == moves.added_bytes - moves.removed_bytes
    assert (moves.removed_bytes, moves.num_kept) == (total, 0)
    assert moves.num_added == sum(len(of_layer[0]) for of_layer in copies)
    way_there = ledger.most
    if ends is Moves.undo:
        assert moves.undo() == []
        assert [layer.owner for layer in layers] == arenas
        assert all(layer.placement is None for layer in layers)
        assert (ledger.held, ledger.most) == (total, way_there)
        assert_whole(layers, blocks)
    else:
        moves.commit()
        for each in memory:
            each[:] = 0  # nobody reads there
        assert_whole(layers, blocks, copies)


def test_too_little_is_said_before_anything_moves(pool):
    rng = np.random.default_rng(4)
    layers, blocks = on_nodes(pool, rng, 4)
    copies = some_copies(rng)
    placements = [layer.placement for layer in layers]
    with pytest.raises(ValueError, match="new copies of expert"):
        Moves(layers, pool, pool.memory_node_of_node, extra_bytes=most_of_one_expert(layers, copies) - 1).go(
            copies, dispatch=dispatch_arguments
        )
    assert [layer.placement for layer in layers] == placements
    assert_whole(layers, blocks)


@pytest.mark.parametrize("seed", range(20))
def test_batches_lead_from_one_to_the_other(seed):
    """Any two sets of copies: every batch changes whole experts, within the limit, as it says; the last is the end."""
    rng = np.random.default_rng(seed)
    size = {(e, s, s + 1, n): int(rng.integers(1, 9)) for e in range(9) for s in range(2) for n in range(3)}
    held, wanted = ({copy: size[copy] for copy in size if rng.random() < 0.5} for _ in range(2))
    most = int(rng.integers(40, 90))  # six copies of at most eight are 48: some limits bind, some do not
    needed = max(sum(size[copy] for copy in wanted.keys() - held.keys() if copy[0] == e) for e in range(9))
    if needed > most:
        with pytest.raises(ValueError, match="new copies of expert"):
            batches(held, wanted, 3, most, 0)
        return
    now, total, ends = set(held), sum(held.values()), max(sum(held.values()), sum(wanted.values()))
    for batch in batches(held, wanted, 3, most, 0):
        then = set(zip(*(column.tolist() for column in batch.copies), strict=True))
        for side, (new, old) in (("added", (then, now)), ("removed", (now, then))):
            of_node = np.zeros(3, np.int64)
            for copy in new - old:
                of_node[copy[3]] += size[copy]
            np.testing.assert_array_equal(getattr(batch, side), of_node)
        assert 0 <= batch.added.sum() <= most
        touched = {copy[0] for copy in then ^ now}
        assert {copy for copy in then if copy[0] in touched} == {copy for copy in wanted if copy[0] in touched}
        total += int(batch.added.sum() - batch.removed.sum())
        assert total <= ends
        now = then
    assert now == set(wanted)
