"""deferral: time of decode steps in which the last experts of each token are computed beside the next layer.  Floor 1.

Expert deferral (KTransformers, Chen et al., SOSP 2025; ``domain.lossy``) adds experts to the output of the next MoE
layer, so that the CPU has work while the device computes attention. It changes results: no figure of this module
stands without the cost in NLL (``moelab bench nll`` has that of nano). With g the moment when a layer's router is done,
I its experts that are added at once and D those that are put off:

    end of I = max(g, end of the last layer's D) + time of I
    end of D = end of I + time of D
    next g   = max(g + fast tier, end of I, end of the last layer's D) + dense path of the next layer

The last layer defers nothing. Does not know uploads, contention for the memory, or which of the experts were hits: the
same share of a layer's CPU time is deferred in every layer-step.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def deferred_step_s(cpu_s: Any, fast_s: Any, dense_s: float, share: float) -> np.ndarray:
    """Seconds of each step, float64 [S].

    ``cpu_s`` and ``fast_s`` [S, L] are what CPU and fast tier take for the experts of a layer-step (``HybridTime``),
    ``dense_s`` what stands before them (``layer_overhead_s``: attention, router, meetings), ``share`` of ``cpu_s`` is
    deferred: ``num_deferred / top_k``. Raises ``ValueError`` for shapes that differ, negative times or another share.
    """
    cpu, fast = np.asarray(cpu_s, np.float64), np.asarray(fast_s, np.float64)
    if cpu.ndim != 2 or fast.shape != cpu.shape or not cpu.shape[1]:
        raise ValueError(f"cpu_s is {cpu.shape}, fast_s {fast.shape}, expected both [steps, layers]: take a HybridTime")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, expected 0 to 1: num_deferred / top_k")
    if dense_s < 0 or (cpu < 0).any() or (fast < 0).any():
        raise ValueError("a time is negative, expected seconds of 0 or more")
    num_steps, num_layers = cpu.shape
    routed = np.full(num_steps, dense_s)
    deferred_end = np.zeros(num_steps)
    for layer in range(num_layers):
        put_off = share if layer + 1 < num_layers else 0.0
        end = np.maximum(routed, deferred_end) + (1 - put_off) * cpu[:, layer]
        output = np.maximum(np.maximum(routed + fast[:, layer], end), deferred_end)
        deferred_end = end + put_off * cpu[:, layer]
        routed = output + (dense_s if layer + 1 < num_layers else 0.0)
    return routed
