"""node_seconds: how long each layer-step of a simulation takes on several nodes, the slowest deciding.  Floor 2.

By what the machine was measured to take where it was calibrated for the experts' shape (``cost_model.node_time``, as
planners predict), else by the nodes' read rates and what is left of them while others read. Does not know fast tiers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moelab.cost_model.node_time import layer_steps_s, read_layer_steps_s
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.machine import Machine
from moelab.policies.requests import Requests
from moelab.simulator.node_reads import ServedPieces

if TYPE_CHECKING:
    from moelab.simulator.result import SimResult


def calibrated_seconds(
    times: ExpertTimes, pieces: ServedPieces, requests: Requests, top_k: int, num_nodes: int
) -> np.ndarray:
    """float64 [S, L]; 0 where nothing was routed."""
    before = np.concatenate([[0], np.cumsum(requests.token_counts, dtype=np.int64)])
    tokens = np.diff(before[requests.offsets]) / top_k
    seconds = layer_steps_s(
        times, step=pieces.request, node=pieces.node, part=pieces.part, num_tokens=pieces.num_tokens,
        tokens_of_step=tokens, num_nodes=num_nodes,
    )  # fmt: skip
    return np.where(tokens > 0, seconds, 0.0).reshape(-1, requests.num_layers)


def seconds_by_rate(result: SimResult, requests: Requests, machine: Machine, efficiency: float) -> np.ndarray:
    """float64 [S, L]: bytes of misses and of sources of copies, and the overhead of each call; 0 where nothing ran.

    Raises ``ValueError`` for a machine of other nodes than the plan's, or without their rates.
    """
    assert result.node_reads is not None
    rates = node_rates(result, machine)
    reads = result.node_reads if result.node_copies is None else result.node_reads + result.node_copies
    shares = [efficiency * machine.read_share_of_nodes(busy) for busy in range(1, len(rates) + 1)]
    seconds = read_layer_steps_s(reads.reshape(-1, len(rates)), read_gb_per_s=rates, shares=shares)
    used = np.diff(requests.offsets) > 0
    return (seconds + used * (machine.layer_overhead_s or 0.0)).reshape(reads.shape[:2])


def node_rates(result: SimResult, machine: Machine) -> list[float]:
    """GB/s of each node of the plan, alone."""
    rates = [node.best_read_gb_per_s for node in machine.nodes]
    known = [rate for rate in rates if rate is not None]
    if len(rates) != len(result.node_names) or len(known) < len(rates):
        raise ValueError(
            f"plan uses {', '.join(result.node_names)}; machine {machine.name} has {len(rates)} nodes with read rates "
            f"{rates}: give a machine of as many nodes, each with a rate"
        )
    return known
