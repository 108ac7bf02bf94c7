"""The experts of one layer in one arena for each node, and where they go when nothing else is said: round-robin.

Looks like an ``ExpertArena``: ``addresses``, ``len``, ``[expert]``. Real nodes bind their arena, virtual ones only
divide the memory. Does not know plans. Floor 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import numpy as np

from moelab.kernels.arena import ExpertArena
from moelab.kernels.layout import ExpertLayout


def round_robin(num_layers: int, num_experts: int, num_nodes: int) -> np.ndarray:
    """int32 [L, E]: expert e of every layer on node e mod N."""
    return np.tile(np.arange(num_experts, dtype=np.int32) % num_nodes, (num_layers, 1))


class NodeArenas:
    """``node_of_expert`` [E]; ``memory_node_of_node`` [N] as in ``Pool``: what each arena is bound to.

    Raises ``MemoryError`` where a mapping is refused.
    """

    def __init__(
        self, layout: ExpertLayout, node_of_expert: np.ndarray, memory_node_of_node: Sequence[int | None]
    ) -> None:
        self.layout = layout
        self.node_of_expert = np.asarray(node_of_expert, np.int32)
        self.arenas: list[ExpertArena] = []
        self.addresses = np.zeros(len(self.node_of_expert), np.int64)
        self._place_of_expert = np.zeros(len(self.node_of_expert), np.int64)
        for node, memory_node in enumerate(memory_node_of_node):
            here = np.flatnonzero(self.node_of_expert == node)
            arena = ExpertArena(layout, len(here), memory_node)
            self.arenas.append(arena)
            self.addresses[here] = arena.addresses
            self._place_of_expert[here] = np.arange(len(here))
        if (self.addresses == 0).any():
            raise ValueError(
                f"node_of_expert: expected nodes 0..{len(self.arenas) - 1}; got "
                f"{sorted(set(self.node_of_expert.tolist()))}"
            )

    @property
    def huge_pages(self) -> str:
        return ", ".join(dict.fromkeys(arena.huge_pages for arena in self.arenas if len(arena)))

    @property
    def binding(self) -> str:
        return ", ".join(dict.fromkeys(arena.binding for arena in self.arenas if len(arena)))

    def __len__(self) -> int:
        return len(self.node_of_expert)

    def __getitem__(self, expert: int) -> np.ndarray:
        """Writable view of one expert, uint8 [expert_bytes]."""
        if not 0 <= expert < len(self):
            raise IndexError(f"expert: expected 0..{len(self) - 1}; got {expert}")
        return self.arenas[self.node_of_expert[expert]][int(self._place_of_expert[expert])]

    def close(self) -> None:
        """Give the memory back; views that are still held keep it until they die. Twice is harmless."""
        for arena in self.arenas:
            arena.close()

    def __enter__(self) -> NodeArenas:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
