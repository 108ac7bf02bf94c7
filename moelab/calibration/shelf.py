"""Shelf: generated experts in every form that placements may ask for, so that many share one memory. Floor 3.

``NodePlacement`` takes over copies that are there already (``keep``); a shelf has them all: whole copies on some nodes
and pieces on others. Does not know kernels or plans.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence

import numpy as np

from moelab.dispatch.c_face import dispatch_arguments
from moelab.domain.plan_copies import Copies
from moelab.kernels import ExpertLayout, NodePlacement, Pool
from moelab.kernels.copy_memory import CopyMemory
from moelab.kernels.generated import fill_expert
from moelab.kernels.node_placement import Copy


class Shelf:
    """Of E experts with their own bytes; ``source(expert)`` gives a whole block (default: generated)."""

    def __init__(
        self, layout: ExpertLayout, num_experts: int, pool: Pool, source: Callable[[int], np.ndarray] | None = None
    ) -> None:
        self.layout, self.num_experts, self.pool = layout, num_experts, pool
        self.memory_of_copy: dict[Copy, CopyMemory] = {}
        self._source = source

    @property
    def num_bytes(self) -> int:
        return sum(len(each.memory) for each in self.memory_of_copy.values())

    def placement(self, copies: Copies, slowness: Sequence[float] | None = None) -> NodePlacement:
        """Of these copies, on the pool's nodes; those that are not there yet are filled."""
        placed = NodePlacement(
            self.layout, self.num_experts, copies, self.pool.memory_node_of_node,
            slowness=None if slowness is None else np.asarray(slowness, np.float64), keep=self.memory_of_copy,
            **dispatch_arguments(len(copies[0]), self.pool.num_nodes),
        )  # fmt: skip
        missing = sorted({copy[0] for copy in placed.new_copies})

        def fill(worker: int, num_workers: int) -> None:
            block = np.empty(self.layout.expert_bytes, np.uint8)
            for expert in missing[worker::num_workers]:
                if self._source is None:
                    fill_expert(block, self.layout, seed=expert)
                else:
                    block[...] = self._source(expert)
                placed.fill(expert, block)

        self.pool.run(fill)
        self.memory_of_copy |= placed.memory_of_copy
        return placed


def pieces_on(num_experts: int, num_units: int, node_of_piece: Sequence[int]) -> Copies:
    """Every expert cut into as many equal pieces as there are nodes named, each piece on its node."""
    ends = np.rint(np.linspace(0, num_units, len(node_of_piece) + 1)).astype(np.int64)
    experts = np.repeat(np.arange(num_experts), len(node_of_piece))
    return (
        experts, np.tile(ends[:-1], num_experts), np.tile(ends[1:], num_experts),
        np.tile(np.asarray(node_of_piece, np.int64), num_experts),
    )  # fmt: skip


def touch(placed: NodePlacement) -> None:
    """Every page of it once. What nobody has touched for seconds takes longer at its next touch on a virtual machine
    (docs/log.md, 2026-11-27, calibration of pieces), and no generation leaves its experts alone for so long."""
    for block in placed.memory_of_copy.values():
        block.memory[:: mmap.PAGESIZE].max()
