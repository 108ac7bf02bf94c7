"""held_out: static placements scored only on requests that they were not counted on.  Floor 5.

Every cluster of requests is scored once, by a placement counted on the other folds, so that its counts pair with those
of policies that learn as they go. A single cluster is cut in time: counted on the first half of the scored steps,
scored on the second (and then everybody is scored there). A static policy's misses are the distinct experts outside its
set, so nothing is simulated; loading the set at the beginning is not charged. Does not know dynamic policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from moelab.domain.trace import Trace
from moelab.findings.counted import COLUMNS, Counted
from moelab.policies.requests import Requests

NUM_FOLDS = 4
STATIC, WATER_FILLED, OTHER_DOMAINS = "static", "static, water-filled", "static, other domains"


class HeldOut:
    """Loads of every cluster [R, L, E], routings and distinct uses of the scored steps, folds by a seeded draw."""

    def __init__(self, trace: Trace, requests: Requests, cluster: np.ndarray, counted: np.ndarray, scored: np.ndarray,
                 seed: int):  # fmt: skip
        """``counted`` and ``scored`` bool [S]: what placements may be counted on, and what is scored."""
        self.shape = (requests.num_layers, requests.num_experts)
        num_clusters = int(cluster.max()) + 1
        clock = np.repeat(np.arange(requests.num_requests), np.diff(requests.offsets))
        step, layer = clock // requests.num_layers, clock % requests.num_layers
        key = (cluster[step] * self.shape[0] + layer) * self.shape[1] + requests.experts
        size = num_clusters * self.shape[0] * self.shape[1]

        def table(rows: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
            of_rows = None if weights is None else weights[rows]
            return np.bincount(key[rows], of_rows, size).reshape(num_clusters, *self.shape).astype(np.int64)

        self.loads = table(counted[step], requests.token_counts)
        self.uses = table(scored[step], None)
        self.routings = table(scored[step], requests.token_counts)
        used = (np.diff(requests.offsets).reshape(-1, requests.num_layers) > 0).sum(1) * scored
        self.layer_steps = np.bincount(cluster, used, num_clusters).astype(np.int64)
        self.has_domains = num_clusters == len(np.unique(trace.tokens.request))  # else a cluster mixes them
        first_token = requests.first_token[np.unique(cluster, return_index=True)[1]]
        self.domain = trace.tokens.domain[first_token]
        draw = np.random.default_rng(seed).permutation(num_clusters)
        self.fold = np.empty(num_clusters, np.int64)
        self.fold[draw] = np.arange(num_clusters) % min(NUM_FOLDS, num_clusters)

    def score(self, slots: int) -> Iterator[Counted]:
        """Static per layer, water-filled (as many slots in all), counted on the other domains where there are two."""
        yield Counted(STATIC, slots, self._values(self.fold, lambda loads: _hottest(loads, slots)))
        in_all = slots * self.shape[0]
        water = self._values(self.fold, lambda loads: _hottest(loads.reshape(1, -1), in_all).reshape(self.shape))
        yield Counted(WATER_FILLED, slots, water)
        if self.has_domains and len(np.unique(self.domain)) > 1:
            yield Counted(OTHER_DOMAINS, slots, self._values(self.domain, lambda loads: _hottest(loads, slots)))

    def _values(self, group: np.ndarray, place: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Each group of clusters scored by ``place`` of the loads of all others (of its own where it is alone)."""
        out = np.zeros((len(group), len(COLUMNS)), np.int64)
        for each in np.unique(group):
            mine = group == each
            others = ~mine if not mine.all() else mine  # one cluster: ``counted`` and ``scored`` are other steps
            held = place(self.loads[others].sum(0))
            hits = (self.uses[mine] * held).sum((1, 2))
            routed_hits = (self.routings[mine] * held).sum((1, 2))
            uses, routings = self.uses[mine].sum((1, 2)), self.routings[mine].sum((1, 2))
            zero = np.zeros_like(hits)
            columns = [hits, uses - hits, zero, zero, routed_hits, routings, self.layer_steps[mine]]
            out[mine] = np.column_stack(columns)
        return out


def _hottest(loads: np.ndarray, slots: int) -> np.ndarray:
    """bool, as loads: the ``slots`` hottest of each row; ties: the lower id."""
    order = np.argsort(-loads, axis=1, kind="stable")[:, :slots]
    held = np.zeros(loads.shape, bool)
    np.put_along_axis(held, order, True, axis=1)
    return held
