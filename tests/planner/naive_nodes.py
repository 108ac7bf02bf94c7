"""Slow twins of the node planners' compiled loops: sets, dictionaries and every assignment tried."""

from itertools import product

import numpy as np

from moelab.domain.trace import NO_EXPERT


def layer_steps(trace, steps):
    """{(layer, step): set of experts} in order of layer, then step."""
    found = {}
    for layer in range(trace.header.num_layers):
        for token in range(trace.num_tokens):
            step = token if steps == "token" else int(trace.tokens.step[token])
            for expert in trace.experts[token, layer].tolist():
                if expert != NO_EXPERT:
                    found.setdefault((layer, step), set()).add(expert)
    return dict(sorted(found.items()))


def least_maximum(masks, times):
    """Least time of the slowest tier over all assignments of experts with these masks (0: cut), in experts."""
    whole = 2**20
    fixed = np.zeros(times.num_tiers)
    for mask in masks:
        if mask == 0:
            fixed += times.piece_sizes
    choices = [[t for t in range(times.num_tiers) if mask >> t & 1] for mask in masks if mask]
    best = np.inf
    for choice in product(*choices):
        loads = fixed.copy()
        np.add.at(loads, list(choice), whole)
        best = min(best, (loads * times.slowness).max())
    return best + (times.barrier if 0 in list(masks) else 0.0)


def sum_of_maxima(trace, steps, masks, times):
    """The objective's sum over layer-steps, layers weighing alike."""
    return sum(
        least_maximum([int(masks[layer, e]) for e in inside], times)
        for (layer, _), inside in layer_steps(trace, steps).items()
    )
