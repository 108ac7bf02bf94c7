"""deciding_bytes: bytes of each step as a prediction sees them that knows one rate of all nodes together. Floor 4.

The node that is done last decides each layer-step. It takes its bytes over its rate, so that bytes over a rate times
the sum of all rates are what all nodes together would read in that time: with equal rates N times the bytes of the
busiest node, and all bytes where each node has its share. Does not know kernels, contention or overheads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.node_slowness import slowness_of_machine
from moelab.execution.execute import Work
from moelab.execution.served import served
from moelab.execution.weights import ReplayWeights
from moelab.kernels import Pool


def deciding_bytes(weights: ReplayWeights, work: Work, slowness: np.ndarray) -> np.ndarray:
    """[steps], of all layers; ``slowness`` float64 [N]: time of a byte on each node, relative to the first."""
    if weights.num_nodes == 1:
        return work.bytes_of_step
    nodes = weights.num_nodes
    slowest = [
        sum(
            (served(weights.arenas[layer], ids[:, layer]).bytes_of_node(nodes) * slowness).max()
            for layer in range(ids.shape[1])
        )
        for ids in work.ids
    ]
    return (1 / slowness).sum() * np.array(slowest, np.float64)


def slowness_here(machine: Machine, pool: Pool, *, in_cache: bool) -> tuple[np.ndarray, str]:
    """(float64 [N] of the nodes that run, by what): the machine's read rates where it has these nodes, else the
    numbers of their workers, which also share out what a cache gives (``in_cache``)."""
    told = slowness_of_machine(machine, pool.num_nodes)
    if told.values is not None and not in_cache:
        return told.values, told.source
    return by_workers([pool.node_of_worker.count(node) for node in range(pool.num_nodes)]), "workers of each node"


def by_workers(num_workers: Sequence[int]) -> np.ndarray:
    """float64 [N]: nodes of so many workers, each worker as fast as the other."""
    return num_workers[0] / np.asarray(num_workers, np.float64)
