"""Rates of decode steps: what the kernels counted, as GB/s and percent of the read limit, by node; in every Generation.

A limit is one that was measured in this run, or a calibrated one of a machine file, and says which. Does not measure
anything itself, and does not know layers (`Engine.bandwidth` does). Floor 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moelab.domain.machine import Machine
from moelab.kernels import Counts, Pool


@dataclass(frozen=True)
class KnownLimit:
    """GB/s that the workers of each node read of their own memory; `source` says when and how it was found.

    `cache_resident`: the experts fit the last-level cache, so that no percentage of a limit of memory is given.
    """

    gb_per_s_of_node: tuple[float, ...]
    source: str
    cache_resident: bool = False

    @classmethod
    def of_machine(cls, machine: Machine, pool: Pool, cache_resident: bool) -> KnownLimit | None:
        """What a machine file says for as many workers; None where it has other nodes or no rates of theirs."""
        if len(machine.nodes) != pool.num_nodes or machine.virtual != pool.virtual:
            return None
        rates = []
        for node, known in enumerate(machine.nodes):
            rate = known.read_gb_per_s.get(pool.node_of_worker.count(node), known.best_read_gb_per_s)
            if rate is None:
                return None
            rates.append(rate)
        dated = f" of {machine.date}" if machine.date else ""
        return cls(tuple(rates), f"{machine.source}{dated}, {machine.name}: not of this run", cache_resident)


@dataclass(frozen=True)
class NodeRate:
    """Bytes of weights over the time that the node's workers took for them; the limit None where none is known."""

    node: int
    num_bytes: int
    gb_per_s: float
    read_limit_gb_per_s: float | None
    percent_of_read_limit: float | None


@dataclass(frozen=True)
class StepRates:
    """`routed` by node; `dense` everything else that the kernels read (empty where torch computes it).

    `gb_per_s` is the bytes of both over the whole time of the steps, whatever they did in it; the limit beside it is
    the sum of the nodes'. A fast tier's reads are in none of them. Steps of several sequences are those of all.
    """

    num_steps: int
    num_bytes: int
    gb_per_s: float
    percent_of_read_limit: float | None
    routed: tuple[NodeRate, ...]
    dense: tuple[NodeRate, ...]
    read_limit: str | None
    cache_resident: bool
    virtual_nodes: bool

    @classmethod
    def of(
        cls, routed: Counts, dense: Counts, step_s: float, num_steps: int, limit: KnownLimit | None, virtual: bool
    ) -> StepRates | None:
        """None where no step was counted. A limit of another number of nodes is none."""
        if num_steps == 0 or step_s <= 0:
            return None
        nodes = routed.num_bytes.shape[1]
        if dense.num_bytes.shape[1] > nodes:  # experts that lie on no node of their own
            dense = dense.of_one_node()
        limits: Sequence[float | None] = [None] * nodes
        if limit is not None and len(limit.gb_per_s_of_node) == nodes:
            limits = limit.gb_per_s_of_node
        else:
            limit = None
        percent = limit is not None and not limit.cache_resident
        num_bytes = int(routed.num_bytes.sum() + dense.num_bytes.sum())
        rate, whole = num_bytes / step_s / 1e9, sum(each or 0.0 for each in limits)

        def rates(counts: Counts) -> tuple[NodeRate, ...]:
            found = []
            for node in range(counts.num_bytes.shape[1]):
                read, seconds = int(counts.num_bytes[:, node].sum()), float(counts.seconds[:, node].sum())
                each, own = (read / seconds / 1e9 if seconds else 0.0), limits[node]
                share = 100 * each / own if percent and own and read else None
                found.append(NodeRate(node, read, each, own, share))
            return tuple(found)

        return cls(
            num_steps=num_steps, num_bytes=num_bytes, gb_per_s=rate,
            percent_of_read_limit=100 * rate / whole if percent and whole else None, routed=rates(routed),
            dense=rates(dense) if dense.num_calls.any() else (), read_limit=None if limit is None else limit.source,
            cache_resident=limit is not None and limit.cache_resident, virtual_nodes=virtual,
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Names and texts, as tables and `moelab generate` show them."""
        share = "" if self.percent_of_read_limit is None else f", {self.percent_of_read_limit:.0f}% of the read limit"
        rows = {"decode steps, counted": f"{self.gb_per_s:.1f} GB/s over the whole step{share}"}
        kind = "virtual node" if self.virtual_nodes else "node"
        for name, rates in (("routed experts", self.routed), ("linear layers", self.dense)):
            for rate in rates:
                of = rate.percent_of_read_limit
                percent = "" if of is None else f", {of:.0f}% of {rate.read_limit_gb_per_s:.1f}"
                rows[f"{name}, {kind} {rate.node}"] = f"{rate.gb_per_s:.1f} GB/s in the kernels{percent}"
        known = self.read_limit or "not measured in this run (engine.measure_read_limit(); without --no-read-limit)"
        if self.cache_resident:
            known += "; the experts fit the last-level cache: no percentage"
        return rows | {"read limit": known}
