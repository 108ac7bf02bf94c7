"""Measured unions: distinct experts of a layer that B strangers' tokens use, from a trace.  Floor 2.

A batch of B sequences brings one token of each; strangers share fewer experts than neighbours of one text do. So each
draw takes B different requests and one decode token of each (seeded). Where the trace has fewer requests than B, it
is windows of B consecutive tokens of one request (`cost_model.batch_union`), which share more, and that is said.
"""

from __future__ import annotations

import numpy as np

from moelab.cost_model.batch_union import batch_union
from moelab.domain.model import ModelSpec
from moelab.domain.trace import NO_EXPERT, Phase, Trace

_DRAWS = 1000


def check_trace(trace: Trace, spec: ModelSpec) -> None:
    """ValueError where the trace is not of a model with the E and K of `spec`."""
    header = trace.header
    if (header.num_experts, header.top_k) != (spec.n_routed_experts, spec.num_experts_per_tok):
        raise ValueError(
            f"trace is of {header.model} (top-{header.top_k} of {header.num_experts}); {spec.name or spec.label} has "
            f"top-{spec.num_experts_per_tok} of {spec.n_routed_experts}: its unions say nothing here, leave it out"
        )


def measured_union(trace: Trace, spec: ModelSpec, batch: int, seed: int = 0) -> tuple[float, str]:
    """(mean distinct experts of a layer, where the number is from)."""
    check_trace(trace, spec)
    kind = "synthetic" if trace.header.synthetic else "recorded"
    tokens = trace.tokens
    decode = np.flatnonzero(tokens.phase == Phase.DECODE)
    kind += "" if len(decode) else " (prefill tokens only)"
    rows = decode if len(decode) else np.arange(len(tokens.phase))
    requests, of_row = np.unique(tokens.request[rows], return_inverse=True)
    if len(requests) < batch:
        mean = float(batch_union(trace, (batch,)).distinct_experts[0])
        return (
            mean,
            f"{kind} trace of {trace.header.model}: {batch} consecutive tokens of one request, which share more",
        )
    order = np.argsort(of_row, kind="stable")
    rows, counts = rows[order], np.bincount(of_row)
    first = np.cumsum(counts) - counts
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(_DRAWS):
        chosen = rng.choice(len(requests), batch, replace=False)
        picked = rows[first[chosen] + rng.integers(0, counts[chosen])]
        used = np.zeros((trace.header.num_layers, trace.header.num_experts + 1), bool)
        ids = np.where(trace.experts[picked] == NO_EXPERT, trace.header.num_experts, trace.experts[picked])
        for token in ids.astype(np.int64):
            np.put_along_axis(used, token, True, axis=1)
        total += used[:, :-1].sum(1).mean()
    return total / _DRAWS, f"{kind} trace of {trace.header.model}: one token of each of {batch} requests"
