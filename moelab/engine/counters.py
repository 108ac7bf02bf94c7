"""Counters of an engine: what it did since it was loaded, and what its kernels counted in each phase.  Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.trace import Phase
from moelab.engine.dense import KernelLinear, KernelMLP
from moelab.engine.step_rates import KnownLimit, StepRates
from moelab.kernels import Counts, Pool, ReadLimit, RoutedExperts, read_limit
from moelab.kernels.counts import Counted
from moelab.kernels.native import Counters as NativeCounters


@dataclass
class Counters:
    """Since loading. `expert_bytes` counts every distinct expert of a layer-step once."""

    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    step_s: float = 0.0
    expert_s: float = 0.0
    expert_bytes: int = 0


class DenseLayers:
    """Everything that the kernels read beside the routed experts, counted as one layer, by the node that read it."""

    def __init__(self, made: Sequence[KernelLinear | KernelMLP], num_nodes: int = 1) -> None:
        self._counters: list[NativeCounters] = [layer.counters for layer in made]
        self._num_nodes = num_nodes

    @property
    def bytes_of_node(self) -> list[int]:
        return [sum(counters.bytes_of_node[node] for counters in self._counters) for node in range(self._num_nodes)]

    @property
    def seconds_of_node(self) -> list[float]:
        nodes = range(self._num_nodes)
        return [sum(counters.ns_of_node[node] for counters in self._counters) / 1e9 for node in nodes]

    @property
    def tail_seconds(self) -> float:
        return sum(counters.tail_ns for counters in self._counters) / 1e9

    @property
    def num_calls(self) -> int:
        return sum(counters.num_calls for counters in self._counters)


class PhaseCounts:
    """Divides what the kernels of some layers count between prefill and decode.

    The counters are read when the phase changes, so a step costs one comparison.
    """

    def __init__(self, layers: Sequence[Counted]) -> None:
        self._layers = layers
        self._last = Counts.of(layers)
        self._phase: Phase | None = None
        self._of_phase = dict.fromkeys(Phase, self._last - self._last)

    def enter(self, phase: Phase) -> None:
        """The next layer calls belong to ``phase``."""
        if phase is not self._phase:
            self._settle()
            self._phase = phase

    def of(self, phase: Phase) -> Counts:
        self._settle()
        return self._of_phase[phase]

    def _settle(self) -> None:
        now = Counts.of(self._layers)
        if self._phase is not None:
            self._of_phase[self._phase] += now - self._last
        self._last = now


@dataclass(frozen=True)
class DecodeMark:
    """What had been counted in decode at one moment; rates are of the difference of two."""

    routed: Counts
    dense: Counts
    step_s: float
    num_steps: int

    def rates_until(self, later: DecodeMark, limit: KnownLimit | None, virtual: bool) -> StepRates | None:
        """None where there was no step."""
        seconds, steps = later.step_s - self.step_s, later.num_steps - self.num_steps
        return StepRates.of(later.routed - self.routed, later.dense - self.dense, seconds, steps, limit, virtual)


def fit_the_cache(routed: Sequence[RoutedExperts]) -> bool:
    """Whether all routed experts fit the last-level cache: then no limit of memory is theirs."""
    addresses, _, block_bytes = _blocks(routed)
    return len(addresses) * block_bytes < Machine.detect().last_level_cache_bytes


def limit_of_experts(routed: Sequence[RoutedExperts], top_k: int, workers: Pool | None) -> ReadLimit | None:
    """The read limit of the experts' own bytes, measured now (mostly below a second); None where none has a home.

    Read are seeded random experts, eight times the last-level cache of them, by ``workers``: those that the steps had.
    """
    cache_bytes = Machine.detect().last_level_cache_bytes
    addresses, nodes, block_bytes = _blocks(routed)
    if len(addresses) == 0:
        return None
    num_read = min(len(addresses), max(2 * top_k, -(-8 * cache_bytes // block_bytes)))
    sample = np.random.default_rng(0).permutation(len(addresses))[:num_read]
    return read_limit(
        addresses[sample], block_bytes, workers, rounds=3, node_of_address=None if nodes is None else nodes[sample]
    )


def known_limit(limit: ReadLimit, routed: Sequence[RoutedExperts]) -> KnownLimit:
    """That limit with the words for results."""
    source = f"measured in this run by {limit.num_workers} workers, {limit.loop_name}"
    return KnownLimit(limit.gb_per_s_of_node, source, fit_the_cache(routed))


def _blocks(routed: Sequence[RoutedExperts]) -> tuple[np.ndarray, np.ndarray | None, int]:
    """(addresses, their nodes or ``None``, bytes at each) to read: every expert that has a home, or every copy's first
    bytes."""
    addresses, nodes, smallest = [], [], routed[0].layout.expert_bytes
    for layer in routed:
        placement = layer.placement
        if placement is None:  # other layers may have one, where some of their experts have no home
            addresses.append(layer.address_of_expert)
            nodes.append(np.zeros(len(layer.address_of_expert), np.int64))
            continue
        has = placement.address_of_copy > 0
        addresses.append(placement.address_of_copy[has])
        nodes.append(np.nonzero(has)[1])
        smallest = min([smallest, *placement.piece_bytes.tolist()])
    several = routed[0].placement is not None and routed[0].placement.num_nodes > 1
    return np.concatenate(addresses), np.concatenate(nodes) if several else None, smallest
