"""Rows of matrices shared out over the nodes of a pool, in proportion to their workers: which bytes lie on which node.

For matrices that every token reads: each node reads its own rows, and all are done at the same time. A matrix stays one
block, so that whoever packs, saves or reads it knows nothing of nodes; its pages are bound, with the border at the
nearest page. The twin of ``share_units`` (kernels/step.h), which draws the same rows; rows of an odd page are read
from the neighbour. Does not know formats beyond their bytes. Floor 1: NumPy and the pages.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moelab.kernels.job import GROUP, TILE_ROWS
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.pages import Pages, Part, map_pages, map_parts
from moelab.kernels.pool import Pool

ALL_NODES = -1  # MOELAB_ALL_NODES: in the place of the node of an expert, some of its rows are on every node


def is_shared(pool: Pool | None) -> bool:
    """Are the rows of the matrices of this pool shared out?"""
    return pool is not None and pool.num_nodes > 1


def nodes_of_shared(count: int, pool: Pool | None) -> np.ndarray | None:
    """``node_of_expert`` int32 [count] of matrices whose rows are shared; ``None`` where there is one node."""
    return np.full(count, ALL_NODES, np.int32) if is_shared(pool) else None


def first_units(num_units: int, pool: Pool) -> list[int]:
    """The first unit of each node of the pool, and ``num_units`` in the end: [N + 1]."""
    workers_of_node = np.bincount(pool.node_of_worker, minlength=pool.num_nodes)
    before = [0, *np.cumsum(workers_of_node).tolist()]
    return [num_units * workers // pool.num_workers for workers in before]


def map_matrices(count: int, num_rows: int, row_bytes: int, pool: Pool | None) -> Pages:
    """Memory of ``count`` matrices, one after the other, of ``num_rows`` rows of tiles of ``row_bytes`` each."""
    num_bytes = count * num_rows * row_bytes
    if pool is None or not is_shared(pool):
        return map_pages(num_bytes)
    return map_parts(num_bytes, _parts(0, [row * row_bytes for row in first_units(count * num_rows, pool)], pool))


def map_expert(layout: ExpertLayout, pool: Pool | None) -> Pages:
    """Memory of one expert in its layout; units are of 32 rows of gate_proj and up_proj, and of 16 of down_proj."""
    if pool is None or not is_shared(pool):
        return map_pages(layout.expert_bytes)
    up_rows, down_rows = (-(-size // TILE_ROWS) for size in (layout.intermediate_size, layout.hidden_size))
    up_bytes = layout.projection_bytes(TILE_ROWS, layout.hidden_size)
    down_bytes = layout.projection_bytes(TILE_ROWS, layout.intermediate_size)
    groups = first_units(-(-layout.intermediate_size // GROUP), pool)
    up = [min(group * (GROUP // TILE_ROWS), up_rows) * up_bytes for group in groups]
    down = [row * down_bytes for row in first_units(down_rows, pool)]
    gate_at, up_at, down_at = layout.offsets
    parts = [*_parts(gate_at, up, pool), *_parts(up_at, up, pool), *_parts(down_at, down, pool)]
    return map_parts(layout.expert_bytes, parts)


def _parts(offset: int, firsts: Iterable[int], pool: Pool) -> list[Part]:
    ends = [offset + first for first in firsts]
    return list(zip(ends[:-1], ends[1:], pool.memory_node_of_node, strict=True))
