"""step_seconds: the predicted time of every step, whose sum is what ``simulate`` predicts.  Floor 4.

Needed for intervals: steps are drawn again, times are not. The models are those of ``simulate``: several nodes wait
for the slowest in each layer-step, one node reads its misses beside the fast tier.
"""

from __future__ import annotations

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.units import GB
from moelab.policies.requests import PHASES
from moelab.simulator.predicted import time_beside_fast_tier
from moelab.simulator.result import SimResult


def step_seconds(result: SimResult, machine: Machine, efficiency: float) -> np.ndarray:
    """float64 [S] of the phase's steps; ``machine`` has as many nodes as the plan, with rates (``simulate`` checks)."""
    overhead = machine.layer_overhead_s or 0.0
    rates = np.array([node.best_read_gb_per_s for node in machine.nodes], np.float64)
    steps = phase_steps(result)
    assert result.counts is not None
    used = (result.counts[steps].sum(-1) > 0).sum(-1)  # layer-steps
    if result.tier_names and machine.fast_tiers:
        time = time_beside_fast_tier(result, machine, efficiency)
        seconds = time.step_s.copy()
        if len(seconds):
            seconds[-1] += time.drain_s
        return seconds
    if result.node_reads is not None:
        assert result.layer_step_s is not None
        return result.layer_step_s[steps].sum(-1)
    moved = result.bytes_of_layer_steps()
    read = (moved["miss_bytes"] + moved["upload_bytes"]).sum(1)
    return read / (rates[0] * GB * efficiency) + overhead * used


def phase_steps(result: SimResult) -> np.ndarray:
    """bool [S]: steps that the result's rates cover."""
    if result.phase is None:
        return np.ones(len(result.phase_of_step), bool)
    return result.phase_of_step == list(PHASES).index(result.phase)
