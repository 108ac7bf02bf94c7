"""Intervals by a cluster bootstrap over requests.  Floor 2.

Routings of one request are far from independent: counting each as its own draw makes error bars four to seven
times too small. So whole requests are drawn again, with replacement (Davison and Hinkley 1997, sections 2.2.3
and 3.8). The interval is the *basic* one, (2 v - q97.5, 2 v - q2.5): shares of the hottest, Gini coefficients
and divergences are biased upwards in small samples, the resamples once more by as much, and reflecting
them takes that bias off (so a value may lie outside its own interval: then the sample is too small for it).
One request has no interval. Does not know what is estimated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.domain.trace import NO_EXPERT, Trace

LEVEL = 0.95
FEWEST_CLUSTERS = 10
"""Of requests, or of batches decoded together: with fewer, drawing them again says nothing."""
NUM_SAMPLES = 400
_MOST_CELLS = 2**28  # of loads by request, 1 GiB


@dataclass(frozen=True, eq=False)
class RequestLoads:
    """Loads of each request, the unit that is drawn again.

    ``loads`` int32 [R, L, E]; ``num_tokens`` int64 [R]; ``domain`` int64 [R] of its first token, -1 for none;
    ``cluster_of_token`` int64 [T]. R counts requests, or groups of them (``requests_per_cluster`` > 1) where
    single ones would not fit into memory; ``num_requests`` counts requests in any case.
    """

    loads: np.ndarray
    num_tokens: np.ndarray
    domain: np.ndarray
    cluster_of_token: np.ndarray
    num_requests: int
    requests_per_cluster: int

    @property
    def num_clusters(self) -> int:
        return len(self.loads)

    @classmethod
    def of_trace(cls, trace: Trace) -> RequestLoads:
        """Requests in the order in which they begin; groups hold neighbours, so that domains stay together."""
        header, tokens = trace.header, trace.tokens
        _, first, inverse = np.unique(tokens.request, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")
        num_requests = len(first)
        per_cluster = max(1, -(-num_requests * header.num_layers * header.num_experts // _MOST_CELLS))
        cluster = rank[inverse] // per_cluster if num_requests else np.zeros(0, np.int64)
        num_clusters = -(-num_requests // per_cluster)
        loads = np.zeros((num_clusters, header.num_layers, header.num_experts), np.int32)
        for layer in range(header.num_layers):
            ids = trace.experts[:, layer]
            place = cluster[:, None] * header.num_experts + ids
            count = np.bincount(place[ids != NO_EXPERT], minlength=num_clusters * header.num_experts)
            loads[:, layer] = count.reshape(num_clusters, header.num_experts)
        beginnings = np.unique(cluster, return_index=True)[1]
        return cls(
            loads=loads,
            num_tokens=np.bincount(cluster, minlength=num_clusters),
            domain=tokens.domain[beginnings].astype(np.int64),
            cluster_of_token=cluster,
            num_requests=num_requests,
            requests_per_cluster=per_cluster,
        )


def resamples(num_clusters: int, num_samples: int, seed: int) -> np.ndarray:
    """float32 [B, R]: how often each cluster is drawn in each resample; B is 0 below two clusters."""
    if num_clusters < 2:
        return np.zeros((0, num_clusters), np.float32)
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), num_samples).astype(np.float32)


def basic_interval(value: np.ndarray, samples: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of ``value`` [...] from ``samples`` [B, ...]; NaN without samples."""
    value = np.asarray(value, np.float64)
    low, high = np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    known = np.isfinite(samples).any(0)
    if known.any():
        tail = (1 - level) / 2
        low[known], high[known] = np.nanquantile(samples[:, known], (tail, 1 - tail), axis=0)
    return 2 * value - high, 2 * value - low
