"""Moment: the calibration's own calls on all nodes at once, made again beside a run.  Floor 6.

Not only the speed of a shared memory changes within minutes, what kernels reach of it does too (a neighbour takes
cores, clocks fall). So calls that calibration knows, two experts on each node for few tokens and for more, are run
before and after each cell. Does not know cells, nor what they run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.bench.placement.placed import PlacedLayers
from moelab.calibration.expert_calls import TOKENS_AT_ONCE
from moelab.calibration.fit import first_node_rates, kernel_shares
from moelab.calibration.rounds import timed
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.plan_copies import whole_on
from moelab.domain.units import GB
from moelab.kernels import read_nodes
from moelab.kernels.pieces import num_units

_READ_EXPERTS = 4  # of each node
_EXPERTS = 2  # of each node


@dataclass(frozen=True)
class Moment:
    """``read_gb_per_s`` of each node while all read; ``call_s`` by tokens: two experts on each node."""

    read_gb_per_s: float
    call_s: dict[int, float]


class BusyNodeCalls:
    """Makes them, on whole experts that lie round-robin on the nodes of ``placed``."""

    def __init__(self, placed: PlacedLayers, *, loop: int, seed: int = 0) -> None:
        num_nodes, num_experts = placed.pool.num_nodes, placed.num_experts
        if num_experts < _READ_EXPERTS * num_nodes:
            raise ValueError(f"got {num_experts} experts, expected {_READ_EXPERTS} on each of {num_nodes} nodes")
        node_of_expert = np.arange(num_experts) % num_nodes
        self.layer = placed.layer(0, whole_on(node_of_expert, num_units(placed.layout)))
        self._of_node = [np.flatnonzero(node_of_expert == node) for node in range(num_nodes)]
        arena = self.layer.placement
        assert arena is not None
        self._addresses = arena.addresses
        self._placed, self._loop, self._rng = placed, loop, np.random.default_rng(seed)
        self._x = self._rng.standard_normal((max(TOKENS_AT_ONCE), placed.layout.hidden_size)).astype(np.float32)

    def make(self) -> Moment:
        """One read and one call of each kind, each call behind an untimed one of one expert, as in the calibration."""
        return Moment(self._read(), {tokens: self._call(tokens) for tokens in TOKENS_AT_ONCE})

    def _chosen(self, of_each: int) -> np.ndarray:
        return np.concatenate([self._rng.permutation(experts)[:of_each] for experts in self._of_node])

    def _read(self) -> float:
        size, num_nodes = self._placed.layout.expert_bytes, len(self._of_node)
        node = np.repeat(np.arange(num_nodes), _READ_EXPERTS)
        addresses = self._addresses[self._chosen(_READ_EXPERTS)]
        spent = read_nodes(addresses, node, size, self._loop, self._placed.pool).max()
        return float(_READ_EXPERTS * size / spent / GB)

    def _call(self, tokens: int) -> float:
        one = self._rng.integers(0, self._placed.num_experts, (1, 1))
        self.layer.forward(self._x[:1], one, np.ones((1, 1), np.float32))
        ids = np.tile(self._chosen(_EXPERTS), (tokens, 1))
        gates = np.full(ids.shape, 1 / ids.shape[1], np.float32)
        return timed(self.layer.forward, self._x[:tokens], ids, gates)


def times_of(times: ExpertTimes, before: Moment, after: Moment) -> tuple[ExpertTimes, float]:
    """(``times`` with the share that kernels reach now, GB/s of a node): of the moments before and after a run.

    The share is the median over calls of both; each is judged by the read rate that it was made beside.
    """
    (busy,) = times.busy
    shares = []
    for moment in (before, after):
        rates = first_node_rates(times, busy, np.array([moment.read_gb_per_s]))
        for tokens, seconds in moment.call_s.items():
            shares.append(kernel_shares(times, busy, tokens, np.array([seconds]), rates))
    rate = (before.read_gb_per_s + after.read_gb_per_s) / 2
    (first,) = first_node_rates(times, busy, np.array([rate]))
    now = times.busy[busy].model_copy(update={"kernel_share": float(np.median(shares)), "read_gb_per_s": float(first)})
    return times.model_copy(update={"busy": {busy: now}}), rate
