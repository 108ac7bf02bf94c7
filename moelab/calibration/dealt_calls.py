"""DealtCalls: kernel calls and reads of whole experts that are dealt to the nodes, on one node or on several. Floor 3.

A calibration makes them in rounds, and whoever runs something later makes them beside it, to see how far the machine is
from what it was then: the same calls, so that the two can be compared. Every call takes other experts than the one
before it, so that weights larger than the cache come from memory. Does not know rounds, nor what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moelab.calibration.rounds import timed
from moelab.domain.units import GB
from moelab.kernels import RoutedExperts, read_nodes

TOKENS_AT_ONCE = (1, 2, 4)
"""Of calls on several nodes at once."""
TOKENS_OF_NODES = (1, 4)
"""Of calls on each node alone: few, where reading decides, and many, where cores do."""
EXPERTS_OF_NODE = 2  # of a call, on each node at work; all tokens go to the same ones
READ_OF_NODE = 4  # of a read, on each node at work


class DealtCalls:
    """On ``layer``, whose expert ``e`` of E lies whole on node ``e % num_nodes`` alone. ``loop``: of the reads.

    Experts are drawn from ``rng``. Raises ``ValueError`` where a node has fewer experts than a read takes.
    """

    def __init__(self, layer: RoutedExperts, *, loop: int, rng: np.random.Generator) -> None:
        arena, pool = layer.placement, layer.pool
        assert arena is not None
        assert pool is not None
        if arena.num_experts < READ_OF_NODE * pool.num_nodes:
            raise ValueError(
                f"got {arena.num_experts} experts, expected {READ_OF_NODE} on each of {pool.num_nodes} nodes"
            )
        self.layer = layer
        self._pool, self._addresses, self._size = pool, arena.addresses, arena.layout.expert_bytes
        self._of_node = [np.arange(node, arena.num_experts, pool.num_nodes) for node in range(pool.num_nodes)]
        self._loop, self._rng = loop, rng
        most = max(*TOKENS_AT_ONCE, *TOKENS_OF_NODES)
        self._x = rng.standard_normal((most, arena.layout.hidden_size)).astype(np.float32)

    def call_s(self, nodes: Sequence[int], tokens: int) -> float:
        """Seconds of one layer-step of ``tokens``, with two experts on each of ``nodes`` (the others rest)."""
        ids = np.tile(self._drawn(nodes, EXPERTS_OF_NODE), (tokens, 1))
        return behind_one_s(self.layer, self._x, ids, self._rng)

    def read_gb_per_s(self, nodes: Sequence[int]) -> float:
        """Of four experts on each of ``nodes`` at once; of the slowest node, its own bytes."""
        addresses = self._addresses[self._drawn(nodes, READ_OF_NODE)]
        node = np.repeat(np.asarray(nodes), READ_OF_NODE)
        spent = read_nodes(addresses, node, self._size, self._loop, self._pool).max()
        return float(READ_OF_NODE * self._size / spent / GB)

    def _drawn(self, nodes: Sequence[int], of_each: int) -> np.ndarray:
        return np.concatenate([self._rng.permutation(self._of_node[node])[:of_each] for node in nodes])


def behind_one_s(layer: RoutedExperts, x: np.ndarray, ids: np.ndarray, rng: np.random.Generator) -> float:
    """Seconds of ``layer`` on the first rows of ``x`` [T or more, H], with ``ids`` [T, K] and equal gate weights.

    It follows an untimed call of one token and one expert, as a layer follows a layer: after something else it takes a
    tenth of a millisecond more, which no generation pays.
    """
    gates = np.full(ids.shape, 1 / ids.shape[1], np.float32)
    one = rng.integers(0, layer.num_experts, (1, 1))
    layer.forward(x[:1], one, np.ones((1, 1), np.float32))
    return timed(layer.forward, x[: len(ids)], ids, gates)
