"""Moment: kinds of calls that calibration makes, on one node and on all at once, made again beside a run.  Floor 6.

Not only the speed of a shared memory changes within minutes, what kernels reach of it does too (a neighbour takes
cores, clocks fall). So reads, and two experts on a node for few tokens and for more, are run before and after each
cell, by the calibration's own ``DealtCalls``. Does not know cells, nor what they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moelab.bench.placement.placed import PlacedLayers
from moelab.calibration.dealt_calls import EXPERTS_OF_NODE, TOKENS_AT_ONCE, TOKENS_OF_NODES, DealtCalls
from moelab.calibration.fit import first_node_rates, kernel_shares
from moelab.cost_model.node_time import read_shares, whole_expert_s
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.plan_copies import whole_on
from moelab.domain.units import GB
from moelab.kernels.pieces import num_units


@dataclass(frozen=True)
class Moment:
    """``alone``: the first node, the others rest; ``together``: all nodes. Rates are of reads, of the slowest node
    where there are several; seconds are of calls of two experts on each node, by their tokens."""

    alone_gb_per_s: float
    together_gb_per_s: float
    alone_s: dict[int, float]
    together_s: dict[int, float]


class NodeCalls:
    """Makes them, on whole experts that lie round-robin on the nodes of ``placed``."""

    def __init__(self, placed: PlacedLayers, *, loop: int, seed: int = 0) -> None:
        self._num_nodes = placed.pool.num_nodes
        dealt = np.arange(placed.num_experts) % self._num_nodes
        self.layer = placed.layer(0, whole_on(dealt, num_units(placed.layout)))
        self._calls = DealtCalls(self.layer, loop=loop, rng=np.random.default_rng(seed))

    def make(self) -> Moment:
        """One read and one call of each kind."""
        calls, first, every = self._calls, range(1), range(self._num_nodes)
        return Moment(
            alone_gb_per_s=calls.read_gb_per_s(first), together_gb_per_s=calls.read_gb_per_s(every),
            alone_s={tokens: calls.call_s(first, tokens) for tokens in TOKENS_OF_NODES},
            together_s={tokens: calls.call_s(every, tokens) for tokens in TOKENS_AT_ONCE},
        )  # fmt: skip


@dataclass(frozen=True)
class Now:
    """``times`` as they are in a moment; GB/s of the nodes' reads while all read, of the slowest and in the mean; and
    of the kernels of all nodes together, one token."""

    times: ExpertTimes
    slowest_gb_per_s: float
    mean_gb_per_s: float
    kernels_gb_per_s: float


def now_of(times: ExpertTimes, moments: Sequence[Moment], num_nodes: int) -> Now:
    """Of the moments before and after a run; medians over all their calls, rates by the time that they stand for.

    What changes: times of experts and read rate of a node alone, by the first node's; read rate and kernel share of
    all nodes at once, each share judged by the reads of its own moment. Overheads and sharpness stay as calibrated.
    Raises ``ValueError`` for a calibration that has not seen so many nodes at once.
    """
    if num_nodes not in times.busy:
        raise ValueError(f"{times.name} was calibrated on {sorted(times.busy)} busy nodes, expected {num_nodes}")
    slower = [
        max(seconds - times.layer_s - tokens * times.token_s, seconds / 2)  # overheads of a worse hour may be larger
        / (EXPERTS_OF_NODE * float(whole_expert_s(times, tokens)))
        for moment in moments
        for tokens, seconds in moment.alone_s.items()
    ]
    alone = harmonic_mean([moment.alone_gb_per_s for moment in moments])
    faster = alone / times.read_gb_per_s
    alone_now = times.model_copy(
        update={
            "expert_s": {tokens: float(np.median(slower)) * s for tokens, s in times.expert_s.items()},
            "read_gb_per_s": alone,
            "nodes": tuple(
                node.model_copy(update={"read_gb_per_s": faster * node.read_gb_per_s}) for node in times.nodes
            ),
        }
    )
    shares = []
    for moment in moments:
        rates = first_node_rates(alone_now, num_nodes, np.array([moment.together_gb_per_s]))
        for tokens, seconds in moment.together_s.items():
            shares.append(kernel_shares(alone_now, num_nodes, tokens, np.array([seconds]), rates))
    slowest = harmonic_mean([moment.together_gb_per_s for moment in moments])
    first = float(first_node_rates(times, num_nodes, np.array([slowest]))[0])
    busy = times.busy[num_nodes].model_copy(update={"kernel_share": float(np.median(shares)), "read_gb_per_s": first})
    mean_share = float(read_shares(times)[:num_nodes].mean()) if times.nodes else 1.0
    call_s = float(np.mean([moment.together_s[1] for moment in moments]))
    call_bytes = num_nodes * EXPERTS_OF_NODE * times.expert_bytes
    return Now(
        times=alone_now.model_copy(update={"busy": times.busy | {num_nodes: busy}}), slowest_gb_per_s=slowest,
        mean_gb_per_s=first * mean_share, kernels_gb_per_s=call_bytes / call_s / GB,
    )  # fmt: skip


def harmonic_mean(rates: Sequence[float]) -> float:
    """Of rates of as many bytes each: all bytes over all time."""
    return len(rates) / sum(1 / rate for rate in rates)
