"""LateReads: of what the kernels read at home, the part of hits whose copy was under way, node by node.

Where homes are placed on nodes the native layer-step counts it itself, with the copies that dispatch chose; elsewhere
one expert is one block on node 0. It does not know why a copy was late. Floor 2: NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moelab.kernels.routed import RoutedExperts


class LateReads:
    """Since it was made. The layers keep their placements as long as it counts."""

    def __init__(self, routed: Sequence[RoutedExperts]) -> None:
        self._routed = list(routed)
        self._marked = [False] * len(routed)
        self._whole_bytes = 0
        self._start = self._counted()

    def note(self, layer: int, experts: Sequence[int]) -> None:
        """The next layer-step of `layer` reads these experts late."""
        placement = self._routed[layer].placement
        if placement is None:
            self._whole_bytes += len(experts) * self._routed[layer].layout.expert_bytes
        elif experts or self._marked[layer]:
            placement.late[:] = 0
            placement.late[list(experts)] = 1
            self._marked[layer] = bool(experts)

    def bytes_of_node(self) -> np.ndarray:
        """int64 [N]."""
        return self._counted() - self._start

    def _counted(self) -> np.ndarray:
        total = np.zeros(max(layer.num_nodes for layer in self._routed), np.int64)
        total[0] = self._whole_bytes
        for layer in self._routed:
            if layer.placement is not None:
                total += layer.placement.late_bytes
        return total
