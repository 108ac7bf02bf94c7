"""Rows shared out over nodes: the bits of the caller alone, bytes counted by the node that read them, pages bound."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from moelab.kernels import ExpertLayout, PackedLinear, Pool, RoutedExperts, isa_table, pages, routed
from moelab.kernels import linear as linear_module
from moelab.kernels import pool as pool_module
from moelab.kernels.native import library
from moelab.kernels.places import Place
from moelab.kernels.shared_rows import ALL_NODES, first_units, map_expert, map_matrices
from tests.kernels.random_experts import random_arena, random_step

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa not in ("numba", "amx", "amx+avx512")]
POOLS = [[0, 1], [0, 1, 1], [0, 0, 0, 1, 2]]
pytestmark = pytest.mark.skipif(library()[0] is None, reason="native kernels are not built")


@pytest.fixture(params=POOLS, ids=str)
def pool(request, monkeypatch):
    """Workers on these nodes, whatever cores this machine has."""
    monkeypatch.setattr(pool_module, "places", lambda *_: [Place(0, node) for node in request.param])
    monkeypatch.setattr(linear_module, "ALONE_BYTES", {"native": 0})
    monkeypatch.setattr(routed, "ALONE_BYTES", {"native": 0, "numba": 0})
    with Pool(pin=False, virtual_nodes=1 + max(request.param)) as pool:
        yield pool


def rows_of_node(num_rows: int, nodes: list[int]) -> np.ndarray:
    """By counting: row r is that of the worker at r / num_rows of all of them."""
    ends = [num_rows * (worker + 1) // len(nodes) for worker in range(len(nodes))]
    at_worker = [nodes[next(w for w, end in enumerate(ends) if row < end)] for row in range(num_rows)]
    return np.bincount(at_worker, minlength=max(nodes) + 1)


def test_shares_are_in_proportion_to_workers(pool):
    for num_units in (0, 1, 2, 5, 100, 100_003):
        firsts = first_units(num_units, pool)
        assert firsts[0] == 0
        assert firsts[-1] == num_units
        ideal = np.bincount(pool.node_of_worker) * num_units / pool.num_workers
        assert (np.abs(np.diff(firsts) - ideal) < 1).all()


@pytest.mark.parametrize("isa", NATIVE)
@pytest.mark.parametrize("seed", range(3))
def test_a_matrix_has_the_bits_of_the_caller_and_each_node_reads_its_rows(pool, isa, seed):
    rng = np.random.default_rng(seed)
    rows, columns, tokens = int(rng.integers(1, 300)), int(rng.integers(1, 200)), int(rng.integers(1, 9))
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    for weight_format in ("float32", "bf16", "int8_g32", "int4_g32"):
        alone = PackedLinear(weights, weight_format, isa).forward(x)
        shared = PackedLinear(weights, weight_format, isa, pool=pool)
        for calls in (1, 2):
            np.testing.assert_array_equal(shared.forward(x), alone)
            row_bytes = shared.num_bytes // -(-rows // 16)
            expected = calls * rows_of_node(-(-rows // 16), pool.node_of_worker) * row_bytes
            assert shared.bytes_of_node == expected.tolist()
        assert sum(shared.bytes_of_node) == shared.bytes_read == 2 * shared.num_bytes


@pytest.mark.parametrize("seed", range(3))
def test_matrices_with_their_own_inputs_are_shared_out_together(pool, seed):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((int(rng.integers(2, 9)), 40, 96)).astype(np.float32)
    x = rng.standard_normal((len(weights), 3, 96)).astype(np.float32)
    shared = PackedLinear(weights, "int8_g32", pool=pool)
    np.testing.assert_array_equal(shared.forward(x), PackedLinear(weights, "int8_g32").forward(x))
    tile_rows = 3 * len(weights)  # of 40 rows each
    expected = rows_of_node(tile_rows, pool.node_of_worker) * (shared.num_bytes // tile_rows)
    assert shared.bytes_of_node == expected.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_one_expert_whose_rows_are_on_all_nodes(pool, seed):
    rng = np.random.default_rng(seed)
    hidden, size = int(rng.integers(1, 300)), int(rng.integers(1, 300))
    layout = ExpertLayout(hidden, size, "int4_g32")
    arena = random_arena(layout, 1, seed)
    step = random_step(rng, 4, 1, 1, hidden)
    step[1][...] = 0
    alone = RoutedExperts(layout, arena.addresses, owner=arena)
    shared = RoutedExperts(layout, arena.addresses, pool=pool, owner=arena, node_of_expert=[ALL_NODES])
    np.testing.assert_array_equal(shared.forward(*step), alone.forward(*step))
    assert shared.num_nodes == pool.num_nodes
    assert sum(shared.bytes_of_node) == layout.expert_bytes
    groups, tile_rows, down_rows = -(-size // 32), -(-size // 16), -(-hidden // 16)
    up = 2 * np.diff(np.minimum(2 * np.array(first_units(groups, pool)), tile_rows))
    expected = up * layout.projection_bytes(16, hidden)
    expected += rows_of_node(down_rows, pool.node_of_worker) * layout.projection_bytes(16, size)
    assert shared.bytes_of_node == expected.tolist()
    step[1][...] = 65535  # nobody asks it
    assert not shared.forward(*step).any()
    assert sum(shared.bytes_of_node) == layout.expert_bytes


def test_several_experts_cannot_be_shared_so(pool):
    layout = ExpertLayout(64, 64, "int4_g32")
    arena = random_arena(layout, 2, 0)
    with pytest.raises(ValueError, match=r"node_of_expert: expected \[2\] of nodes"):
        RoutedExperts(layout, arena.addresses, pool=pool, owner=arena, node_of_expert=[ALL_NODES, ALL_NODES])


@pytest.fixture
def bound(monkeypatch):
    """What pages would be bound to on a machine with as many nodes, as (start, stop, node) of a block."""
    asked = []

    def bind(memory, node):
        asked.append((memory.ctypes.data, memory.ctypes.data + len(memory), node))
        return f"node{node}"

    monkeypatch.setattr(pages, "_bind", bind)
    return asked


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="binds memory")
def test_pages_of_a_matrix_are_bound_by_its_rows(pool, bound):
    pool.memory_node_of_node = [10 + node for node in range(pool.num_nodes)]
    rng = np.random.default_rng(0)
    for num_rows in (1, 3, 7, 450):
        row_bytes = 64 * int(rng.integers(1, 400))
        bound.clear()
        memory = map_matrices(1, num_rows, row_bytes, pool)
        node_of_row = np.repeat(range(pool.num_nodes), np.diff(first_units(num_rows, pool)))
        base, num_bytes = memory.memory.ctypes.data, num_rows * row_bytes
        assert [stop for _, stop, _ in bound[:-1]] == [start for start, _, _ in bound[1:]], "without gaps"
        assert (bound[0][0], bound[-1][1]) == (base, base + num_bytes)
        for start, stop, node in bound:
            assert (start - base) % 4096 == 0
            middle = np.arange(start - base + 2047, stop - base, 4096)  # whose half a page is decides
            assert set(node_of_row[middle // row_bytes]) <= {node - 10}, (num_rows, row_bytes)
        assert memory.binding == ", ".join(sorted({f"node{node}" for *_, node in bound}))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="binds memory")
def test_pages_of_an_expert_are_bound_by_the_rows_of_its_three_matrices(pool, bound):
    pool.memory_node_of_node = [10 + node for node in range(pool.num_nodes)]
    layout = ExpertLayout(2048, 1000, "int8_g32")
    memory = map_expert(layout, pool)
    base, node_of_page = memory.memory.ctypes.data, np.full(-(-layout.expert_bytes // 4096), -1)
    for start, stop, node in bound:
        node_of_page[(start - base) // 4096 : -(-(stop - base) // 4096)] = node - 10
    assert (node_of_page >= 0).all()
    up_bytes, down_bytes = layout.projection_bytes(16, 2048), layout.projection_bytes(16, 1000)
    groups, down = first_units(32, pool), first_units(128, pool)
    wrong = 0
    for offset, row_bytes, num_rows, firsts in (
        (layout.offsets[0], up_bytes, 63, 2 * np.array(groups)),
        (layout.offsets[1], up_bytes, 63, 2 * np.array(groups)),
        (layout.offsets[2], down_bytes, 128, np.array(down)),
    ):
        for row in range(num_rows):
            node = int(np.searchsorted(firsts, row, side="right")) - 1
            span = node_of_page[(offset + row * row_bytes) // 4096 : (offset + (row + 1) * row_bytes) // 4096]
            wrong += int((span != node).sum())
    assert wrong <= 3 * (pool.num_nodes - 1) + 2 * 3, "a page at each border at most"


def test_one_node_binds_nothing(bound):
    with Pool(1) as pool:
        assert map_matrices(1, 10, 1088, pool).binding.startswith("none") or bound[-1][2] is None
        assert PackedLinear(np.ones((16, 64), np.float32), "int8_g32", pool=pool).bytes_of_node == [0]
