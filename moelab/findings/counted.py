"""Counted: what one policy at one capacity did, by cluster of requests, so that requests can be drawn again.  Floor 5.

A cluster is one request, or requests that share forward passes (a batch decoded together): only whole clusters can be
drawn again. Knows how counts of steps become counts of clusters. Does not know how they came about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.domain.trace import Trace
from moelab.simulator.loop import HITS, MISSES, PREFETCHES, ROUTED_HITS, ROUTINGS, UPLOADS

COLUMNS = ("hits", "misses", "uploads", "prefetches", "routed_hits", "routings", "layer_steps")


@dataclass(frozen=True, eq=False)
class Counted:
    """``values`` int64 [R, 7], columns in ``COLUMNS``, over the scored steps."""

    policy: str
    slots: int
    values: np.ndarray
    is_oracle: bool = False

    def column(self, name: str) -> np.ndarray:
        return self.values[:, COLUMNS.index(name)]

    @property
    def reads(self) -> np.ndarray:
        """int64 [R]: distinct misses + uploads + prefetches."""
        return self.column("misses") + self.column("uploads") + self.column("prefetches")

    def ratio(self, what: str) -> tuple[np.ndarray, np.ndarray]:
        """(numerator, denominator) [R] of ``reads`` or ``uploads`` per layer-step, ``hit_rate`` per request."""
        if what == "hit_rate":
            return self.column("hits"), self.column("hits") + self.column("misses")
        values = self.reads if what == "reads" else self.column(what) + self.column("prefetches")
        return values, self.column("layer_steps")

    def value(self, what: str) -> float:
        above, below = self.ratio(what)
        return float(above.sum() / max(1, below.sum()))


def cluster_of_step(trace: Trace) -> np.ndarray:
    """int64 [S]: numbers 0.. of the clusters in order of their first step."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    step = np.unique(trace.tokens.step, return_inverse=True)[1]
    request = np.unique(trace.tokens.request, return_inverse=True)[1]
    num_steps, num_requests = int(step.max()) + 1, int(request.max()) + 1
    shape = (num_steps + num_requests,) * 2
    graph = coo_array((np.ones(len(step)), (step, num_steps + request)), shape=shape)
    component = connected_components(graph, directed=False)[1][:num_steps]
    first = np.unique(component, return_index=True)[1]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[component]


def of_steps(counts: np.ndarray, cluster: np.ndarray, is_scored: np.ndarray) -> np.ndarray:
    """int64 [R, 7] from the loop's counts [S, L, 8], ``cluster`` [S] and ``is_scored`` bool [S]."""
    picked = counts[..., [HITS, MISSES, UPLOADS, PREFETCHES, ROUTED_HITS, ROUTINGS]].sum(1, dtype=np.int64)
    layer_steps = (counts[..., ROUTINGS] > 0).sum(1, dtype=np.int64)
    by_step = np.column_stack([picked, layer_steps]) * is_scored[:, None]
    out = np.zeros((int(cluster.max()) + 1, len(COLUMNS)), np.int64)
    np.add.at(out, cluster, by_step)
    return out
