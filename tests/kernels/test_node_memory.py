"""Room of a NUMA node on systems made of files; tests/vm asks a real kernel."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
import pytest

from moelab.kernels import node_memory, pages
from moelab.kernels.copy_memory import give_back, take_memory
from moelab.kernels.node_memory import check_room, check_rooms, free_bytes, promised_bytes, room_bytes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
MIB = 1 << 20


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Two nodes: 900 MiB free and 100 MiB of files on node 1; min_free_kbytes 8 MiB."""
    for node, free in ((0, 500), (1, 900)):
        folder = tmp_path / f"node{node}"
        folder.mkdir()
        (folder / "meminfo").write_text(
            f"Node {node} MemTotal:       {2048 * 1024} kB\nNode {node} MemFree:        {free * 1024} kB\n"
            f"Node {node} Active(file):   {60 * 1024} kB\nNode {node} Inactive(file): {40 * 1024} kB\n"
            f"Node {node} Active(anon):   {777 * 1024} kB\n"
        )
    (tmp_path / "has_memory").write_text("0-1\n")
    (tmp_path / "min_free").write_text(f"{8 * 1024}\n")
    monkeypatch.setattr(node_memory, "_NODES", tmp_path)
    monkeypatch.setattr(node_memory, "_MIN_FREE", tmp_path / "min_free")
    monkeypatch.setattr(node_memory, "cgroup_room_bytes", lambda: None)
    monkeypatch.setattr(pages, "_NODES", tmp_path)
    monkeypatch.setattr(pages, "_bind", lambda mapping, node: f"node{node}")  # this machine has no node 1
    return tmp_path


def test_free_is_memory_and_page_cache_and_room_keeps_a_margin(system):
    assert free_bytes(1) == 1000 * MIB
    assert room_bytes(1) == (1000 - 64 - 16) * MIB
    assert free_bytes(7) is None
    assert room_bytes(7) is None
    check_room(7, 1 << 60)  # nobody says what is free: nothing is refused


def test_refused_by_name_and_in_gib(system):
    check_room(1, 920 * MIB)
    with pytest.raises(MemoryError, match=r"node1: expected room for 0.90 GiB; got 0.90 GiB \(free 0.98 GiB, promised"):
        check_room(1, 920 * MIB + 1)


def test_a_limit_of_the_control_group_is_of_all_nodes_together(system, monkeypatch):
    monkeypatch.setattr(node_memory, "cgroup_room_bytes", lambda: 600 * MIB)
    assert room_bytes(1) == (600 - 64) * MIB
    held = pages.map_pages(200 * MIB, node=0)
    assert room_bytes(1) == (600 - 202 - 64) * MIB
    with pytest.raises(MemoryError, match=r"node1: .* \(left by the control group 0.59 GiB, .*: raise the limit"):
        check_room(1, 500 * MIB)
    # Each alone has room, both together have not.
    for node in (0, 1):
        check_rooms({node: 180 * MIB})
    with pytest.raises(MemoryError, match=r"node0, node1: expected room for 0.35 GiB; got 0.33 GiB"):
        check_rooms({0: 180 * MIB, 1: 180 * MIB})
    assert not held.memory[:1000].any()
    monkeypatch.setattr(node_memory, "cgroup_room_bytes", lambda: 4000 * MIB)
    assert room_bytes(1) == 920 * MIB


def test_promises_of_mappings_that_live_and_are_not_written(system):
    first = pages.map_pages(400 * MIB, node=1)
    assert promised_bytes(1) == 402 * MIB  # with the room for alignment
    assert promised_bytes(0) == 0
    with pytest.raises(MemoryError, match="node1"):
        pages.map_pages(600 * MIB, node=1)
    first.memory[: 100 * MIB] = 1
    assert 290 * MIB <= promised_bytes(1) <= 302 * MIB
    pages.map_pages(100 * MIB, node=0)  # given back at once
    assert promised_bytes(0) == 0
    del first
    assert promised_bytes(1) == 0
    assert room_bytes(1) == 920 * MIB


def test_one_node_refuses_nothing(system):
    (system / "has_memory").write_text("1\n")
    held = pages.map_pages(2000 * MIB, node=1)
    assert promised_bytes(1) == 0
    assert held.memory.nbytes == 2000 * MIB


def test_pages_are_counted_as_written():
    mapping = mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = np.frombuffer(mapping, np.uint8)
    memory[5 * mmap.PAGESIZE] = 1
    memory[9 * mmap.PAGESIZE + 7] = 1
    assert node_memory._written_bytes(memory.ctypes.data, len(memory)) == 2 * mmap.PAGESIZE


def test_blocks_given_back_are_promised_no_longer(system):
    """One mapping, kept alive by one of its blocks: the others' pages are free, and not owed to anybody."""
    blocks = take_memory([40 * MIB] * 10, 1)
    for block in blocks:
        block.memory[:] = 1
    held = promised_bytes(1)
    for block in blocks[1:]:
        give_back(block)
    assert promised_bytes(1) <= held + MIB
    assert (blocks[0].memory == 1).all()
    assert not blocks[5].memory.any()


def test_locked_pages_do_not_return_and_stay_promised(system):
    """The kernel refuses to take back what is locked in memory."""
    first, second = take_memory([4 * mmap.PAGESIZE] * 2, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    where = (ctypes.c_void_p(first.memory.ctypes.data), ctypes.c_size_t(len(first.memory)))
    first.memory[:], second.memory[:] = 3, 4
    assert libc.mlock(*where) == 0
    assert not give_back(first)
    assert (first.memory == 3).all()
    assert give_back(second)
    assert not second.memory.any()
    libc.munlock(*where)
    assert give_back(first)
    assert not first.memory.any()
