"""SameExperts: one piece of work on one node and on all: what nodes add.  Floor 6.  Does not know plans."""

from __future__ import annotations

import numpy as np

from moelab.bench.placement.placed import PlacedLayers
from moelab.domain.plan_copies import whole_on
from moelab.kernels.pieces import num_units

_STEPS = 12
_EXPERTS = 2  # of each node, in a step


class SameExperts:
    """Of the first layer of ``placed``: all on its first node, or dealt to all."""

    def __init__(self, placed: PlacedLayers, *, seed: int = 0) -> None:
        num_experts, num_nodes = placed.num_experts, placed.pool.num_nodes
        dealt, units = np.arange(num_experts) % num_nodes, num_units(placed.layout)
        self._placed = placed
        self._one = placed.layer(0, whole_on(np.zeros(num_experts, np.int64), units))
        self._all = placed.layer(0, whole_on(dealt, units))
        rng = np.random.default_rng(seed)
        of_node = [np.flatnonzero(dealt == node) for node in range(num_nodes)]
        self.steps = [
            np.concatenate([rng.permutation(experts)[:_EXPERTS] for experts in of_node])[None, None, :]
            for _ in range(_STEPS)
        ]

    def scaling(self, of_each: int = _EXPERTS) -> float:
        """Time on one node over that on all, medians of twelve steps, six by turns; ``of_each`` (1 or 2) experts of
        each node in a step.

        Not step by step: a core that rested while the other node worked is slower for some milliseconds.
        """
        half = _STEPS // 2
        one, spread = list[float](), list[float]()
        chosen = [step[..., :: _EXPERTS // of_each] for step in self.steps]
        for steps in (chosen[:half], chosen[half:]):
            for layer, seconds in ((self._one, one), (self._all, spread)):
                seconds += [self._placed.run([layer], [step]) for step in steps]
        return float(np.median(one) / np.median(spread))
