"""batches: requests of a trace decoded together, to plan for a batch size that was not recorded.  Floor 3.

Real steps of real requests in lockstep: requests are dealt into groups of ``batch`` by a seeded draw, and the i-th
tokens of a group are one step; where a request ends the rest goes on without it, as in a batch that takes no new ones.
Experts that several tokens of a step use are then one read (``LayerSteps``). What the batch would have done to the
routing (nothing, but for rounding) and requests that wait for each other are not known here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moelab.domain.trace import Trace


def in_batches(trace: Trace, batch: int, seed: int = 0) -> Trace:
    """``trace`` with the steps of batches, rows in their order.

    Raises ``ValueError`` for a batch below 1 or fewer requests than one batch has.
    """
    requests, of_token = np.unique(trace.tokens.request, return_inverse=True)
    if not 1 <= batch <= len(requests):
        raise ValueError(f"batch is {batch}, expected 1 to the {len(requests)} requests of the trace")
    place = np.empty(len(requests), np.int64)
    place[np.random.default_rng(seed).permutation(len(requests))] = np.arange(len(requests))
    order = np.argsort(of_token, kind="stable")  # by request, in the order of steps
    counts = np.bincount(of_token)
    rank = np.empty(trace.num_tokens, np.int64)
    rank[order] = np.arange(trace.num_tokens) - np.repeat(np.cumsum(counts) - counts, counts)
    key = place[of_token] // batch * (int(counts.max(initial=0)) + 1) + rank
    rows = np.argsort(key, kind="stable")
    step = np.unique(key[rows], return_inverse=True)[1]
    return Trace(
        trace.header,
        np.ascontiguousarray(trace.experts[rows]),
        np.ascontiguousarray(trace.gate_weights[rows]),
        replace(trace.tokens.take(rows), step=step),
        {name: array[rows] for name, array in trace.extras.items()},
    )
