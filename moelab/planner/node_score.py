"""node_score: what a placement is worth on some layer-steps, with intervals by drawing requests again.  Floor 3.

In experts: the time that one expert takes on a node of mean rate. Pairs of placements are compared on the same drawn
requests, because hard requests are hard for both. Does not know how a placement was found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moelab.analysis.bootstrap import FEWEST_CLUSTERS, NUM_SAMPLES, basic_interval, resamples
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.step_maximum import TierTimes, step_maxima


@dataclass(frozen=True, eq=False)
class NodeScore:
    """``maxima`` float64 [C]: sum of the slowest tier's time over the layer-steps of each cluster of requests.

    ``ideal`` [C]: the same sum if all nodes ended together: experts that no fast tier serves over the number of nodes;
    ``num_layer_steps`` int64 [C].
    """

    maxima: np.ndarray
    ideal: np.ndarray
    num_layer_steps: np.ndarray

    @property
    def mean(self) -> float:
        """Mean of the maximum over layer-steps, in experts."""
        return float(self.maxima.sum() / self.num_layer_steps.sum())

    @property
    def ideal_mean(self) -> float:
        return float(self.ideal.sum() / self.num_layer_steps.sum())

    @property
    def ratio(self) -> float:
        """Mean of the maximum over K / N; NaN where fast tiers serve everything, so that nothing is left of both."""
        ideal = self.ideal.sum()
        return float(self.maxima.sum() / ideal) if ideal > 0 else float("nan")

    def slower(self, factor: float) -> NodeScore:
        """The same with all times ``factor`` times as long."""
        return replace(self, maxima=self.maxima * factor)

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95% of ``mean``; NaN with fewer than ``FEWEST_CLUSTERS``."""
        weights = self._resamples(seed)
        return _interval(self.mean, (weights @ self.maxima) / _nonzero(weights @ self.num_layer_steps))

    @property
    def has_interval(self) -> bool:
        return len(self.maxima) >= FEWEST_CLUSTERS

    def _resamples(self, seed: int) -> np.ndarray:
        return resamples(len(self.maxima), NUM_SAMPLES if self.has_interval else 0, seed)

    def difference(self, other: NodeScore, seed: int = 0) -> tuple[float, float, float]:
        """(this mean - the other's, low, high), paired by cluster."""
        value = self.mean - other.mean
        weights = self._resamples(seed)
        drawn = (weights @ (self.maxima - other.maxima)) / _nonzero(weights @ self.num_layer_steps)
        return (value, *_interval(value, drawn))


def node_score(steps: LayerSteps, masks: np.ndarray, times: TierTimes, layer_weight: np.ndarray) -> NodeScore:
    """Score of ``masks`` [L, E] on ``steps``; clusters without a layer-step are left out."""
    weight = layer_weight[steps.layer]
    served_by_node = (masks.ravel() >> times.num_nodes == 0)[steps.keys]
    on_nodes = np.add.reduceat(served_by_node.astype(np.int64), steps.offsets[:-1])
    ideal = weight * on_nodes / times.num_nodes
    count = np.bincount(steps.cluster, minlength=steps.num_clusters)
    there = count > 0

    def by_cluster(values: np.ndarray) -> np.ndarray:
        return np.bincount(steps.cluster, values, steps.num_clusters)[there]

    return NodeScore(by_cluster(weight * step_maxima(steps, masks, times)), by_cluster(ideal), count[there])


def _interval(value: float, drawn: np.ndarray) -> tuple[float, float]:
    low, high = basic_interval(np.array(value), drawn)
    return float(low), float(high)


def _nonzero(counts: np.ndarray) -> np.ndarray:
    return np.maximum(counts, 1)
