"""SameExperts: one piece of work on each node alone and on all: what nodes add.  Floor 6.  Does not know plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moelab.analysis.bootstrap import resamples
from moelab.bench.placement.placed import PlacedLayers
from moelab.bench.placement.step_times import NUM_SAMPLES
from moelab.domain.plan_copies import whole_on
from moelab.kernels.pieces import num_units

_STEPS = 12
_AT_ONCE = 3  # of them
_EXPERTS = 2  # of each node, in a step


class SameExperts:
    """Of the first layer of ``placed``: all on one of its nodes, for each node, or dealt to all."""

    def __init__(self, placed: PlacedLayers, *, seed: int = 0) -> None:
        num_experts, num_nodes = placed.num_experts, placed.pool.num_nodes
        dealt, units = np.arange(num_experts) % num_nodes, num_units(placed.layout)
        self._placed = placed
        homes = [*(np.full(num_experts, node) for node in range(num_nodes)), dealt]
        self._layers = [placed.layer(0, whole_on(home, units)) for home in homes]
        rng = np.random.default_rng(seed)
        of_node = [np.flatnonzero(dealt == node) for node in range(num_nodes)]
        self.steps = [
            np.concatenate([rng.permutation(experts)[:_EXPERTS] for experts in of_node])[None, None, :]
            for _ in range(_STEPS)
        ]

    def times(self, of_each: int = _EXPERTS) -> np.ndarray:
        """Seconds [N + 1, 12] of twelve steps on each node alone and on all, ``_AT_ONCE`` by turns; ``of_each`` (1 or
        2) experts of each node in a step: with two they are more than a cache of 32 MB holds, with one they may not be.

        Not step by step: a core that rested while the other node worked is slower for some milliseconds. So the
        last call of each turn runs before it as well, and that time is written over.
        """
        seconds = np.empty((len(self._layers), _STEPS))
        for first in range(0, _STEPS, _AT_ONCE):
            for row, layer in enumerate(self._layers):
                for number in (first + _AT_ONCE - 1, *range(first, first + _AT_ONCE)):
                    step = self.steps[number][..., :: _EXPERTS // of_each]
                    seconds[row, number] = self._placed.run([layer], [step])
        return seconds


@dataclass(frozen=True)
class Scaling:
    """How many times as long the nodes take alone, in the mean, as all at once; interval of 95%, NaN from one round."""

    value: float
    interval: tuple[float, float]


def scaling(rounds: Sequence[np.ndarray]) -> Scaling:
    """Of ``times`` [N + 1, 12] of each round: median over rounds and steps of the mean of the nodes alone over all at
    once, of the same turn. Not of the first node alone, for the slower of two cores decides how long both take."""
    ratio = np.stack([times[:-1].mean(axis=0) / times[-1] for times in rounds])
    drawn = [np.median(np.repeat(ratio, each, axis=0)) for each in resamples(len(ratio), NUM_SAMPLES, 0).astype(int)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if drawn else (np.nan, np.nan)
    return Scaling(float(np.median(ratio)), (float(low), float(high)))
