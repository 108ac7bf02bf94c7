"""In the guest: a node without cores (memory alone, as CXL is) can hold experts, but nobody is there to read them."""

from __future__ import annotations

import os

import numpy as np
from test_placement import nodes_of_pages

from moelab.kernels import ExpertArena, ExpertLayout, Pool
from moelab.kernels.pages import several_nodes

LAST = int(os.environ["NUM_NODES"]) - 1


def test_the_pool_has_no_workers_there():
    with Pool() as pool:
        assert pool.num_nodes == LAST
        assert LAST not in pool.memory_node_of_node


def test_memory_can_be_bound_there():
    assert several_nodes()
    arena = ExpertArena(ExpertLayout(512, 256, "int4_g32"), 8, node=LAST)
    arena.memory[:] = 1
    assert arena.binding == f"node{LAST}"
    assert set(nodes_of_pages(arena.memory)) == {LAST}
    assert np.all(arena.memory == 1)
