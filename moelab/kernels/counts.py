"""Counts: what the kernels have counted of a set of layers, by layer and node, at one moment.

The difference of two is what happened between them. The kernels count bytes where they read them and time where they
spend it, so nothing here is derived from a routing. Does not know rates or limits (see ``bandwidth``). Floor 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Counted(Protocol):
    """What counts: the routed experts of a layer, or others. All since it was made."""

    @property
    def bytes_of_node(self) -> list[int]: ...

    @property
    def seconds_of_node(self) -> list[float]: ...

    @property
    def tail_seconds(self) -> float | None: ...

    @property
    def num_calls(self) -> int: ...


@dataclass(frozen=True)
class Counts:
    """``num_bytes`` int64 [L, N] of weights; ``seconds`` [L, N] of a node's own work, without its waits for others.

    ``tail_s`` [L] between the first and the last worker, after gate_up and after down, of a layer's calls (NaN for
    Numba); ``num_calls`` int64 [L].
    """

    num_bytes: np.ndarray
    seconds: np.ndarray
    tail_s: np.ndarray
    num_calls: np.ndarray

    @classmethod
    def of(cls, layers: Sequence[Counted]) -> Counts:
        """Since the layers were made. All layers have the same nodes."""
        tails = [layer.tail_seconds for layer in layers]
        return cls(
            np.array([layer.bytes_of_node for layer in layers], np.int64),
            np.array([layer.seconds_of_node for layer in layers]),
            np.array([np.nan if tail is None else tail for tail in tails]),
            np.array([layer.num_calls for layer in layers], np.int64),
        )

    def of_nodes(self, num_nodes: int) -> Counts:
        """The same with more nodes, on which nothing was counted: layers may be placed on nodes later."""
        more = ((0, 0), (0, num_nodes - self.num_bytes.shape[1]))
        return Counts(np.pad(self.num_bytes, more), np.pad(self.seconds, more), self.tail_s, self.num_calls)

    def of_one_node(self) -> Counts:
        """The same of all nodes together: the time is that of the slowest."""
        num_bytes, seconds = self.num_bytes.sum(axis=1, keepdims=True), self.seconds.max(axis=1, keepdims=True)
        return Counts(num_bytes, seconds, self.tail_s, self.num_calls)

    def __sub__(self, earlier: Counts) -> Counts:
        a, b = _alike(self, earlier)
        return Counts(a.num_bytes - b.num_bytes, a.seconds - b.seconds, a.tail_s - b.tail_s, a.num_calls - b.num_calls)

    def __add__(self, other: Counts) -> Counts:
        a, b = _alike(self, other)
        return Counts(a.num_bytes + b.num_bytes, a.seconds + b.seconds, a.tail_s + b.tail_s, a.num_calls + b.num_calls)


def _alike(a: Counts, b: Counts) -> tuple[Counts, Counts]:
    num_nodes = max(a.num_bytes.shape[1], b.num_bytes.shape[1])
    return a.of_nodes(num_nodes), b.of_nodes(num_nodes)
