"""In the guest: experts lie on the node that the plan says, and that node's workers read them."""

from __future__ import annotations

import ctypes
import mmap
import os
from itertools import pairwise

import numpy as np
import pytest
from random_experts import random_projection, random_step

from moelab.kernels import (
    ExpertArena,
    ExpertLayout,
    NodeArenas,
    NodePlacement,
    PackedLinear,
    Pool,
    RoutedExperts,
    round_robin,
)
from moelab.kernels.places import places
from moelab.kernels.shared_rows import first_units, map_expert

NUM_NODES = int(os.environ["NUM_NODES"])
_MOVE_PAGES, _GETCPU = 279, 309
libc = ctypes.CDLL(None, use_errno=True)


def nodes_of_pages(memory: np.ndarray) -> np.ndarray:
    """The node of each page (of the operating system), negative where there is none."""
    first = memory.ctypes.data // mmap.PAGESIZE
    last = (memory.ctypes.data + len(memory) - 1) // mmap.PAGESIZE
    pages = np.arange(first, last + 1, dtype=np.uint64) * mmap.PAGESIZE
    status = np.full(len(pages), -1, np.int32)
    assert not libc.syscall(
        ctypes.c_long(_MOVE_PAGES), 0, ctypes.c_ulong(len(pages)), ctypes.c_void_p(pages.ctypes.data), None,
        ctypes.c_void_p(status.ctypes.data), 0,
    ), os.strerror(ctypes.get_errno())  # fmt: skip
    return status


def current_place() -> tuple[int, int]:
    """(core, node) that this thread runs on."""
    core, node = ctypes.c_uint(), ctypes.c_uint()
    assert not libc.syscall(ctypes.c_long(_GETCPU), ctypes.byref(core), ctypes.byref(node), None)
    return core.value, node.value


@pytest.fixture
def pool():
    with Pool() as pool:
        yield pool


def filled(layout: ExpertLayout, node_of_expert: np.ndarray, pool: Pool, seed: int) -> NodeArenas:
    arenas = NodeArenas(layout, node_of_expert, pool.memory_node_of_node)
    rng = np.random.default_rng(seed)
    for expert in range(len(arenas)):
        layout.pack_expert(
            arenas[expert], *(random_projection(rng, shape, layout.weight_format) for shape in layout.shapes)
        )
    return arenas


def test_pool_has_the_nodes_of_the_machine(pool):
    assert pool.num_nodes == NUM_NODES
    assert not pool.virtual
    assert pool.memory_node_of_node == list(range(NUM_NODES))
    assert pool.pinned


def test_workers_stay_on_their_core_and_node(pool):
    expected = [(place.core, place.memory_node) for place in places()]
    seen: list[set[tuple[int, int]]] = [set() for _ in expected]

    def look(worker: int, num_workers: int) -> None:
        for _ in range(100):
            seen[worker].add(current_place())

    for _ in range(20):
        pool.run(look)
    assert seen[1:] == [{place} for place in expected[1:]]  # the caller is never pinned


@pytest.mark.parametrize("weight_format", ["int4_g32", "bf16"])
def test_every_page_of_every_expert_is_on_its_node(pool, weight_format):
    layout = ExpertLayout(1024, 512, weight_format)
    node_of_expert = np.random.default_rng(1).integers(0, NUM_NODES, 16)
    node_of_expert[:NUM_NODES] = range(NUM_NODES)
    with filled(layout, node_of_expert, pool, 2) as arenas:
        assert arenas.binding == ", ".join(f"node{n}" for n in range(NUM_NODES))
        for expert, node in enumerate(node_of_expert):
            assert set(nodes_of_pages(arenas[expert])) == {pool.memory_node_of_node[node]}


def test_huge_pages_are_on_the_node_too(pool):
    layout = ExpertLayout(2048, 1024, "bf16")  # 12 MB an expert
    with filled(layout, np.repeat(range(NUM_NODES), 4), pool, 3) as arenas:
        for node, arena in enumerate(arenas.arenas):
            assert arena.huge_pages == "2 MB, advised"
            assert (arena.huge_bytes or 0) > 0
            assert set(nodes_of_pages(arena.memory)) == {node}


@pytest.mark.parametrize("shape", [(1600, 500), (6, 300, 200)])
def test_rows_of_a_matrix_lie_on_the_nodes_whose_workers_read_them(pool, shape):
    """Every page but those at a border; the bits of the caller alone, and each node's bytes."""
    rng = np.random.default_rng(4)
    weights = rng.standard_normal(shape).astype(np.float32)
    shared, alone = PackedLinear(weights, "float32", "generic", pool=pool), PackedLinear(weights, "float32", "generic")
    assert shared.binding == ", ".join(f"node{node}" for node in range(NUM_NODES))
    x = rng.standard_normal((*shape[:-2], 2, shape[-1])).astype(np.float32)
    np.testing.assert_array_equal(shared.forward(x), alone.forward(x))
    num_rows = shared.num_bytes // (4096 * -(-shape[-1] // 64))
    row_bytes, firsts = shared.num_bytes // num_rows, first_units(num_rows, pool)
    assert shared.bytes_of_node == (np.diff(firsts) * row_bytes).tolist()
    seen = nodes_of_pages(shared.tiles)
    for node in range(NUM_NODES):
        inside = seen[-(-firsts[node] * row_bytes // mmap.PAGESIZE) : firsts[node + 1] * row_bytes // mmap.PAGESIZE]
        assert len(inside) > 10
        assert set(inside) == {pool.memory_node_of_node[node]}


def test_rows_of_a_shared_expert_lie_on_every_node(pool):
    layout = ExpertLayout(1024, 512, "bf16")
    pages = map_expert(layout, pool)
    pages.memory[:] = 1  # by the caller: the binding decides
    seen = nodes_of_pages(pages.memory)
    assert pages.binding == ", ".join(f"node{node}" for node in range(NUM_NODES))
    third = len(seen) // 3
    for projection in range(3):
        here = seen[projection * third : (projection + 1) * third]
        assert (np.diff(here) >= 0).all()
        assert np.bincount(here, minlength=NUM_NODES).tolist() == [third // NUM_NODES] * NUM_NODES


def test_binding_decides_and_not_who_writes_first(pool):
    """The page would come from the writer's node: each worker writes an arena of another node."""
    layout = ExpertLayout(512, 256, "int4_g32")
    nodes = pool.memory_node_of_node
    arenas = [ExpertArena(layout, 4, nodes[(n + 1) % NUM_NODES]) for n in range(NUM_NODES)]

    def write(worker: int, num_workers: int) -> None:
        for arena in arenas[worker::num_workers]:
            arena.memory[:] = worker + 1

    pool.run(write)
    for n, arena in enumerate(arenas):
        assert set(nodes_of_pages(arena.memory)) == {(n + 1) % NUM_NODES}


@pytest.mark.parametrize("isa", ["generic", "avx2"])
@pytest.mark.parametrize("seed", range(3))
def test_placement_never_changes_results_and_each_node_reads_its_own(pool, isa, seed):
    rng = np.random.default_rng(seed)
    layout = ExpertLayout(192, 96, "int4_g32")
    num_experts, outputs, steps = 24, [], [random_step(rng, t, 6, 24, 192) for t in (1, 3, 8)]
    plans = [np.zeros(24, int), round_robin(1, 24, NUM_NODES)[0], rng.integers(0, NUM_NODES, 24)]
    plans += [rng.permutation(np.arange(24) % NUM_NODES)]
    for node_of_expert in plans:
        with filled(layout, node_of_expert, pool, 7) as arenas:
            routed = RoutedExperts(
                layout, arenas.addresses, isa=isa, pool=pool, owner=arenas, node_of_expert=node_of_expert
            )
            outputs.append([routed.forward(*step) for step in steps])
            expected = np.zeros(NUM_NODES, np.int64)
            for _, ids, _ in steps:
                used = np.unique(ids[ids < num_experts])
                expected += np.bincount(node_of_expert[used], minlength=NUM_NODES) * layout.expert_bytes
            assert list(routed.bytes_of_node) == expected.tolist()
    for other in outputs[1:]:
        for a, b in zip(outputs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_pieces_lie_on_their_nodes_and_compute_the_same_bits(pool):
    """Every second expert cut at random over two nodes; then moved on by one node, keeping what stays."""
    layout, num_experts = ExpertLayout(512, 320, "int4_g32"), 12  # 10 units; 83 kB a piece at least
    rng = np.random.default_rng(11)
    whole = ExpertArena(layout, num_experts)
    for expert in range(num_experts):
        layout.pack_expert(whole[expert], *(random_projection(rng, s, "int4_g32") for s in layout.shapes))
    step = random_step(rng, 4, 3, num_experts, 512)
    expected = RoutedExperts(layout, whole.addresses, "generic", pool=pool).forward(*step)
    before = None
    for shift in range(2):
        rows = []
        for expert in range(num_experts):
            node = (expert + shift) % NUM_NODES
            rows += (
                [(expert, 0, 4, node), (expert, 4, 10, (node + 1) % NUM_NODES)] if expert % 2 else [(expert, 0, 10, 0)]
            )
        placement = NodePlacement(layout, num_experts, tuple(np.array(rows).T), pool.memory_node_of_node, keep=before)
        for expert in range(num_experts):
            placement.fill(expert, whole[expert])
        routed = RoutedExperts(layout, placement.addresses, "generic", pool=pool, placement=placement)
        np.testing.assert_array_equal(routed.forward(*step), expected)
        assert list(routed.bytes_of_node[:NUM_NODES]) == placement.nodes_of_step().tolist()
        for (*_, node), copy in placement.memory_of_copy.items():
            assert set(nodes_of_pages(copy.memory)) == {pool.memory_node_of_node[node]}
        if before is not None:
            assert len(placement.new_copies) == num_experts, "the uncut stay"
            before.release(placement)
        before = placement


def lighter_node(num_jobs, masks, sizes, num_tiers, slowness, tier_of, loads, scratch):
    """``moelab_dispatch_fn`` in Python (the guest has no Numba): each job to the node with fewest bytes that has it."""
    for node in range(num_tiers):
        loads[node] = 0.0
    for job in range(num_jobs):
        have = [node for node in range(num_tiers) if masks[job] >> node & 1]
        tier_of[job] = min(have, key=lambda node: loads[node])
        loads[tier_of[job]] += sizes[job] * slowness[tier_of[job]]
    return 0


@pytest.mark.parametrize("seed", range(2))
def test_replicas_lie_on_all_of_their_nodes_and_compute_the_same_bits(pool, seed):
    """One copy, several, or one on every node, some cut: pages of each copy, and who read; then one copy of each."""
    of_integers, of_numbers = ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_double)
    callback = ctypes.CFUNCTYPE(
        ctypes.c_int64, ctypes.c_int64, of_integers, of_integers, ctypes.c_int64, of_numbers,
        ctypes.POINTER(ctypes.c_int32), of_numbers, of_integers,
    )(lighter_node)  # fmt: skip
    address = ctypes.cast(callback, ctypes.c_void_p).value
    layout, num_experts = ExpertLayout(512, 320, "int4_g32"), 12
    rng = np.random.default_rng(seed)
    whole = ExpertArena(layout, num_experts)
    for expert in range(num_experts):
        layout.pack_expert(whole[expert], *(random_projection(rng, s, "int4_g32") for s in layout.shapes))
    steps = [random_step(rng, tokens, 4, num_experts, 512) for tokens in (1, 3)]
    plain = RoutedExperts(layout, whole.addresses, "generic", pool=pool)
    expected = [plain.forward(*step) for step in steps]
    before = None
    for most in (NUM_NODES, 1):
        rows = []
        for expert in range(num_experts):
            ends = [0, 4, 10] if expert % 3 == 0 else [0, 10]
            nodes = rng.permutation(NUM_NODES)[: int(rng.integers(1, NUM_NODES + 1)) if expert > 1 else NUM_NODES]
            rows += [(expert, a, b, int(node)) for a, b in pairwise(ends) for node in nodes[:most]]
        placement = NodePlacement(
            layout, num_experts, tuple(np.array(rows).T), pool.memory_node_of_node, keep=before, dispatch=address,
            dispatch_scratch=5 * NUM_NODES + 4 * len(rows) + 1,
        )  # fmt: skip
        for expert in range(num_experts):
            placement.fill(expert, whole[expert])
        assert set(placement.memory_of_copy) == set(rows)
        assert placement.binding == ", ".join(f"node{node}" for node in sorted({row[3] for row in rows}))
        for (*_, node), copy in placement.memory_of_copy.items():
            assert set(nodes_of_pages(copy.memory)) == {pool.memory_node_of_node[node]}
        routed = RoutedExperts(layout, placement.addresses, "generic", pool=pool, placement=placement)
        for step, output in zip(steps, expected, strict=True):
            at_start = np.array(routed.bytes_of_node)
            np.testing.assert_array_equal(routed.forward(*step), output)
            read = (np.array(routed.bytes_of_node) - at_start)[:NUM_NODES]
            assert read.tolist() == placement.nodes_of_step().tolist()
            used = np.unique(step[1][step[1] < num_experts])
            assert read.sum() == sum(placement.piece_bytes[np.isin(placement.ranges[:, 0], used)])
        if before is not None:
            before.release(placement)
        before = placement
