"""SameExperts: one piece of work on one node and on all: what nodes add.  Floor 6.  Does not know plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moelab.bench.placement.placed import PlacedLayers
from moelab.bench.placement.step_times import StepTimes
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

    def times(self, of_each: int = _EXPERTS) -> np.ndarray:
        """Seconds [2, 12] of twelve steps on one node and on all, six by turns; ``of_each`` (1 or 2) experts of each
        node in a step.

        Not step by step: a core that rested while the other node worked is slower for some milliseconds. So the
        last call of each six runs before them as well, and that time is written over.
        """
        half = _STEPS // 2
        seconds = np.empty((2, _STEPS))
        for first in (0, half):
            for row, layer in enumerate((self._one, self._all)):
                for number in (first + half - 1, *range(first, first + half)):
                    step = self.steps[number][..., :: _EXPERTS // of_each]
                    seconds[row, number] = self._placed.run([layer], [step])
        return seconds


@dataclass(frozen=True)
class Scaling:
    """How many times as long one node takes as all, with its interval of 95%, NaN from one round."""

    value: float
    interval: tuple[float, float]


def scaling(rounds: Sequence[np.ndarray]) -> Scaling:
    """Of ``times`` [2, 12] of each round: medians over rounds of each call, as plans are measured."""
    seconds = np.stack(rounds)
    found = StepTimes(seconds, np.zeros(seconds.shape, np.int64))
    drawn = found.drawn_mean_s
    interval = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975)) if len(drawn) else (np.nan, np.nan)
    return Scaling(float(found.mean_s[0] / found.mean_s[1]), (float(interval[0]), float(interval[1])))
