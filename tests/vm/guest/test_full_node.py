"""In the guest: a full node is refused before anything is written, and nothing spills to another."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from test_placement import nodes_of_pages

from moelab.kernels import ExpertLayout, NodeArenas, NodePlacement, Pool
from moelab.kernels.node_memory import free_bytes, promised_bytes, room_bytes
from moelab.kernels.pages import map_pages

LAST = int(os.environ["NUM_NODES"]) - 1
MIB = 1 << 20


def foreign_pages() -> list[int]:
    """``numa_foreign`` and ``numa_miss`` of every node: pages that were meant for another node."""
    counts = []
    for file in sorted(Path("/sys/devices/system/node").glob("node*/numastat")):
        values = dict(line.split() for line in file.read_text().splitlines())
        counts += [int(values["numa_foreign"]), int(values["numa_miss"])]
    return counts


def test_more_than_a_node_has_is_refused_by_name():
    free = free_bytes(LAST)
    with pytest.raises(MemoryError, match=rf"node{LAST}: expected room for .* GiB; got .* place fewer experts"):
        map_pages(free + 100 * MIB, LAST)
    assert promised_bytes(LAST) == 0


def test_what_was_promised_counts_until_it_is_written_or_dies():
    before = room_bytes(LAST)
    size = before // 3
    held = [map_pages(size, LAST) for _ in range(2)]
    assert promised_bytes(LAST) >= 2 * size  # nothing is written yet, and nothing is taken from what is free
    with pytest.raises(MemoryError, match=f"node{LAST}"):
        map_pages(size + 64 * MIB, LAST)
    held[0].memory[:] = 1
    assert promised_bytes(LAST) < size + 16 * MIB
    assert abs(before - 2 * size - room_bytes(LAST)) < 48 * MIB  # written instead of promised: the same room
    del held
    assert promised_bytes(LAST) == 0
    assert abs(before - room_bytes(LAST)) < 48 * MIB


def test_a_node_filled_to_its_room_keeps_everything_and_others_get_nothing():
    foreign = foreign_pages()
    pages = map_pages(room_bytes(LAST) - 8 * MIB, LAST)
    pages.memory[:] = 5
    assert set(nodes_of_pages(pages.memory)) == {LAST}
    assert foreign_pages() == foreign


def test_arenas_of_a_plan_that_does_not_fit_leave_nothing_behind():
    layout = ExpertLayout(1024, 512, "bf16")  # 3 MB
    with Pool() as pool:
        node = pool.num_nodes - 1
        num_experts = 2 * (free_bytes(node) or 0) // layout.expert_bytes
        with pytest.raises(MemoryError, match=rf"arena of {num_experts} experts: node{node}"):
            NodeArenas(layout, np.full(num_experts, node), pool.memory_node_of_node)
        assert [promised_bytes(each) for each in range(LAST + 1)] == [0] * (LAST + 1)


def test_room_comes_back_when_experts_move_away():
    """Half of the node, moved off expert by expert while the rest stays: the room is what it was before them."""
    layout = ExpertLayout(512, 256, "bf16")
    with Pool() as pool:
        node = pool.num_nodes - 1
        before = room_bytes(node)
        num_experts = before // 2 // layout.expert_bytes
        here = np.stack([np.arange(num_experts), np.zeros(num_experts, int), np.full(num_experts, 8)], axis=1)
        first = NodePlacement(layout, num_experts, (*here.T, np.full(num_experts, node)), pool.memory_node_of_node)
        for memory in first.memory_of_copy.values():
            memory.memory[:] = 1
        moved = np.where(np.arange(num_experts) < num_experts // 8, node, 0)[::-1]
        second = NodePlacement(layout, num_experts, (*here.T, moved), pool.memory_node_of_node, keep=first)
        kept = sum(len(m.memory) for (*_, at), m in second.memory_of_copy.items() if at == node)
        first.release(second)
        assert abs(room_bytes(node) - (before - kept)) < 48 * MIB
