"""NodeSlowness: what dispatch is told of the nodes' speeds, and who said it: the plan, a machine, or nobody.

One rule for engine, replay and simulator, so that what a plan was made for is what runs: the rates that the plan names,
else those of a machine with as many nodes, else equal ones. Does not measure rates. Floor 0: NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.plan import Plan

EQUAL = "equal: nobody said rates of the nodes"


@dataclass(frozen=True, eq=False)
class NodeSlowness:
    """``values`` float64 [N]: time of a byte on each node, the first is 1; ``None``: equal. ``source``: whose rates."""

    values: np.ndarray | None
    source: str

    def of_nodes(self, num_nodes: int) -> np.ndarray:
        """float64 [num_nodes], ones where equal."""
        return np.ones(num_nodes) if self.values is None else self.values

    @property
    def said(self) -> tuple[float, ...] | None:
        """Plain numbers for results; ``None``: equal."""
        return None if self.values is None else tuple(self.values.tolist())


def node_slowness(plan: Plan, machine: Machine | None, num_nodes: int) -> NodeSlowness:
    """For ``num_nodes`` nodes that run ``plan``; nodes beyond the plan's hold nothing of it: as its first."""
    if num_nodes < 2:
        return NodeSlowness(None, "one node")
    if plan.node_rates is not None:
        rates = np.array(plan.node_rates[:num_nodes])
        rates = np.concatenate([rates, np.full(num_nodes - len(rates), rates[0])])
        return NodeSlowness(rates[0] / rates, "the plan's node_rates")
    return slowness_of_machine(machine, num_nodes)


def slowness_of_machine(machine: Machine | None, num_nodes: int) -> NodeSlowness:
    """By the machine's read rates; equal where it has other nodes or does not know the rate of each."""
    if machine is None:
        return NodeSlowness(None, EQUAL)
    rates = [node.best_read_gb_per_s for node in machine.nodes]
    known = [rate for rate in rates if rate is not None]
    if not len(known) == len(rates) == num_nodes:
        return NodeSlowness(None, f"equal: neither the plan nor machine {machine.name} says rates of {num_nodes} nodes")
    return NodeSlowness(known[0] / np.array(known), f"read rates of {machine.name}")
