"""What a layer-step reads: the blocks that serve its experts, their bytes and nodes, by the kernels' ``dispatch``.

Floor 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.dispatch import assign
from moelab.execution.steps import distinct_experts
from moelab.kernels import ExpertArena, NodePlacement


@dataclass(frozen=True)
class Served:
    """int64 [M] each; ``nodes`` are those of the pool, 0 where nodes are not told apart; ``experts`` by number."""

    addresses: np.ndarray
    num_bytes: np.ndarray
    nodes: np.ndarray
    experts: np.ndarray

    def bytes_of_node(self, num_nodes: int) -> np.ndarray:
        """int64 [N]."""
        return np.bincount(self.nodes, self.num_bytes, minlength=num_nodes).astype(np.int64)

    def blocks(self, block_bytes: int) -> tuple[np.ndarray, np.ndarray]:
        """(address, node) of every whole block of so many bytes; what is left of a copy is left out."""
        counts = self.num_bytes // block_bytes
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self.addresses, counts) + place * block_bytes, np.repeat(self.nodes, counts)


def served(arena: ExpertArena | NodePlacement, ids: np.ndarray) -> Served:
    """Of the ids [T, K] of one layer."""
    experts = distinct_experts(ids).astype(np.int64)
    if isinstance(arena, ExpertArena):
        sizes = np.full(len(experts), arena.layout.expert_bytes, np.int64)
        return Served(arena.addresses[experts], sizes, np.zeros(len(experts), np.int64), experts)
    first, last = arena.piece_of_expert[experts], arena.piece_of_expert[experts + 1]
    pieces = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)] or [np.zeros(0, np.int64)])
    sizes = arena.piece_bytes[pieces]
    if not len(pieces):
        return Served(pieces, sizes, pieces, pieces)
    chosen = assign(arena.nodes_of_piece[pieces], num_tiers=arena.num_nodes, sizes=sizes, slowness=arena.slowness)
    nodes = chosen.tier_of.astype(np.int64)
    return Served(arena.address_of_copy[pieces, nodes], sizes, nodes, np.repeat(experts, last - first))
