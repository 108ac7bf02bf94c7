"""sample: stretches of consecutive steps, drawn all over a trace, for a preview.  Floor 4.

Stretches and not single steps, because policies live on what was used just before; many stretches and not one, because
neighbouring steps are alike: they are drawn again as wholes for the interval (moving blocks, Kuensch 1989). A policy
that remembers sees the steps before each stretch too, which do not count: they are called ``mixed``, a phase that no
figure covers. Does not know how long a policy's memory is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from moelab.domain.trace import Trace
from moelab.planner.layer_steps import clusters_of_steps
from moelab.policies.requests import PHASES, Requests

NUM_STRETCHES = 24
_NOT_TAKEN, _WARM = -1, -2


@dataclass(frozen=True, eq=False)
class Part:
    """Some steps of a trace. ``cluster`` int64 [S] of each step: what the bootstrap draws together, ``unit`` of them
    in words; ``is_sample``: not all steps of what it stands for; ``num_steps_of_all`` steps of that; ``num_warm`` more
    steps that only warm a policy up, of the phase ``mixed``."""

    trace: Trace
    requests: Requests
    cluster: np.ndarray
    num_clusters: int
    unit: str
    is_sample: bool
    num_steps_of_all: int
    num_warm: int = 0


def whole(trace: Trace) -> Part:
    """All steps; clusters are requests, or groups of those that share steps."""
    requests = Requests.of_trace(trace)
    step = np.repeat(np.arange(requests.num_steps), np.diff(requests.first_token))
    cluster, num_clusters = clusters_of_steps(step, trace.tokens.request)
    return Part(trace, requests, cluster, num_clusters, "requests", False, requests.num_steps)


def stretches(
    trace: Trace, most_tokens: int, seed: int = 0, *, warm_tokens: int = 0, num_stretches: int = NUM_STRETCHES
) -> Part:
    """Up to ``num_stretches`` stretches of consecutive steps with at most ``most_tokens`` tokens, or all steps.

    Before each come steps of ``warm_tokens`` / ``num_stretches`` tokens that do not count.
    """
    starts = np.flatnonzero(np.diff(trace.tokens.step, prepend=trace.tokens.step[:1] - 1))
    sizes = np.diff(np.append(starts, trace.num_tokens))
    if trace.num_tokens <= most_tokens:
        return whole(trace)
    begins = np.linspace(0, len(sizes), num_stretches + 1).astype(int)
    rng = np.random.default_rng(seed)
    taken = np.full(len(sizes), _NOT_TAKEN)
    for n, (low, high) in enumerate(pairwise(begins)):
        if low == high:
            continue
        first = int(rng.integers(low, high))
        room = np.cumsum(sizes[first:high]) <= most_tokens // num_stretches
        taken[first : first + max(1, int(room.sum()))] = n
        before = np.cumsum(sizes[:first][::-1]) <= warm_tokens // num_stretches
        warm = taken[first - int(before.sum()) : first]
        warm[warm == _NOT_TAKEN] = _WARM
    part = trace.take(np.repeat(taken != _NOT_TAKEN, sizes))
    requests, taken = Requests.of_trace(part), taken[taken != _NOT_TAKEN]
    is_warm = taken == _WARM
    requests = replace(requests, flags=np.where(is_warm, PHASES["mixed"], requests.flags))
    cluster = np.zeros(len(taken), np.int64)
    names, cluster[~is_warm] = np.unique(taken[~is_warm], return_inverse=True)
    return Part(
        part, requests, cluster, len(names), "stretches of steps", True, len(sizes), int(is_warm.sum())
    )  # fmt: skip
