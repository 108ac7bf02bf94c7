"""Compares sampled outputs of a replay with the float64 reference. Floor 4."""

from __future__ import annotations

import numpy as np

from moelab.execution.execute import Work
from moelab.execution.weights import ReplayWeights
from moelab.kernels.reference import reference_experts


def max_relative_error(weights: ReplayWeights, work: Work, num_samples: int, seed: int = 0) -> float:
    """Largest ``|y - reference| / |reference|`` (Euclidean norms) over sampled (step, layer) of one token.

    The reference takes the weights out of the packed bytes with code of its own, in float64.
    """
    rng = np.random.default_rng(seed)
    worst = 0.0
    for _ in range(num_samples):
        step = int(rng.integers(len(work.ids)))
        layer = int(rng.integers(work.ids[step].shape[1]))
        x = work.input(step, layer)[:1]
        ids, gates = work.ids[step][:1, layer], work.gates[step][:1, layer]
        y = np.array(weights.layers[layer].forward(np.ascontiguousarray(x), ids, gates), np.float64)
        truth = reference_experts(x, ids, gates, weights.arenas[layer], weights.layout)
        worst = max(worst, float(np.linalg.norm(y - truth) / np.linalg.norm(truth)))
    return worst
