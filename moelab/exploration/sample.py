"""sample: stretches of consecutive steps, drawn all over a trace, for a preview.  Floor 4.

Stretches and not single steps, because policies live on what was used just before; many stretches and not one, because
neighbouring steps are alike: they are drawn again as wholes for the interval (moving blocks, Kuensch 1989). What a
policy remembers across a border of two stretches is wrong for the first steps after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moelab.domain.trace import Trace
from moelab.planner.layer_steps import clusters_of_steps
from moelab.policies.requests import Requests

NUM_STRETCHES = 24


@dataclass(frozen=True, eq=False)
class Part:
    """Some steps of a trace. ``cluster`` int64 [S] of each step: what the bootstrap draws together, ``unit`` of them
    in words; ``is_sample``: not all steps of what it stands for; ``num_steps_of_all`` steps of that."""

    trace: Trace
    requests: Requests
    cluster: np.ndarray
    num_clusters: int
    unit: str
    is_sample: bool
    num_steps_of_all: int


def whole(trace: Trace) -> Part:
    """All steps; clusters are requests, or groups of those that share steps."""
    requests = Requests.of_trace(trace)
    step = np.repeat(np.arange(requests.num_steps), np.diff(requests.first_token))
    cluster, num_clusters = clusters_of_steps(step, trace.tokens.request)
    return Part(trace, requests, cluster, num_clusters, "requests", False, requests.num_steps)


def stretches(trace: Trace, most_tokens: int, seed: int = 0) -> Part:
    """Up to ``NUM_STRETCHES`` stretches of consecutive steps with at most ``most_tokens`` tokens, or all steps."""
    starts = np.flatnonzero(np.diff(trace.tokens.step, prepend=trace.tokens.step[:1] - 1))
    sizes = np.diff(np.append(starts, trace.num_tokens))
    if trace.num_tokens <= most_tokens:
        return whole(trace)
    begins = np.linspace(0, len(sizes), NUM_STRETCHES + 1).astype(int)
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(sizes), np.int64) - 1
    for n, (low, high) in enumerate(pairwise(begins)):
        if low == high:
            continue
        first = int(rng.integers(low, high))
        room = np.cumsum(sizes[first:high]) <= most_tokens // NUM_STRETCHES
        taken[first : first + max(1, int(room.sum()))] = n
    chosen = np.flatnonzero(taken >= 0)
    part = trace.take(np.repeat(taken >= 0, sizes))
    cluster = np.unique(taken[chosen], return_inverse=True)[1]
    return Part(
        part, Requests.of_trace(part), cluster, int(cluster.max()) + 1, "stretches of steps", True, len(sizes)
    )  # fmt: skip
