"""Compares outputs of a replay with the float64 reference, and bytes that were counted with the routing. Floor 4."""

from __future__ import annotations

import numpy as np

from moelab.domain.trace import NO_EXPERT
from moelab.execution.execute import Measurement, Work
from moelab.execution.served import served
from moelab.execution.weights import ReplayWeights
from moelab.kernels.reference import reference_experts, relative_error


def max_relative_error(weights: ReplayWeights, work: Work, measured: Measurement, tolerance: float) -> float:
    """Largest ``|y - reference| / |reference|`` (Euclidean norms), one routed token of each kept output.

    The reference takes the weights out of the packed bytes with code of its own, in float64. Raises
    ``RuntimeError`` for a NaN or an error beyond ``tolerance``: such a speed would be worth nothing.
    """
    errors = [0.0]
    for (step, layer), y in measured.outputs.items():
        ids = work.ids[step][:, layer]
        routed = np.flatnonzero((ids != NO_EXPERT).any(axis=1))
        if not len(routed):
            continue
        at = slice(routed[-1], routed[-1] + 1)
        x, gates = work.input(step, layer)[at], work.gates[step][at, layer]
        truth = reference_experts(x, ids[at], gates, weights.arenas[layer], weights.layout)
        errors.append(relative_error(y[at].astype(np.float64), truth))
    worst = float(np.max(errors))  # NaN, if there is one
    if not worst <= tolerance:
        kernel = f"{weights.layers[0].isa.isa}, {weights.layers[0].activation}"
        raise RuntimeError(
            f"outputs of the kernels ({kernel}) differ from the float64 reference by {worst:.2e}, expected at most "
            f"{tolerance:.0e}: a bug of moelab or of this machine, please report it"
        )
    return worst


def check_bytes(weights: ReplayWeights, work: Work, measured: Measurement) -> None:
    """Every step read every distinct expert of it once, each piece on the node that dispatch chose.

    Raises ``RuntimeError`` otherwise: a rate of bytes that were not read would be worth nothing.
    """
    for step, counts in enumerate(measured.counts):
        ids = work.ids[step]
        expected = np.stack(
            [
                served(weights.arenas[layer], ids[:, layer]).bytes_of_node(weights.num_nodes)
                for layer in range(ids.shape[1])
            ]
        )
        if not np.array_equal(counts.num_bytes, expected):
            layer, node = np.argwhere(counts.num_bytes != expected)[0]
            raise RuntimeError(
                f"kernels counted {counts.num_bytes[layer, node]} bytes in step {step}, layer {layer}, node{node}; "
                f"expected {expected[layer, node]} from routing and placement: a bug of moelab, please report it"
            )
