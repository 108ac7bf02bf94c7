"""bound: the least that any placement of the kind could reach on the same steps.  Floor 4.

One node: misses of the oracle of the policy's class with the same fast tier (MIN, or MIN with bypass), which sees the
future. Several nodes: the bytes of every layer-step that no fast tier serves, shared evenly by all nodes: whole experts
where none is cut and the nodes are alike, else to the byte. Does not know experts one by one (``regret``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.plan import Plan, PolicyChoice
from moelab.exploration.draft import Draft
from moelab.exploration.step_seconds import phase_steps
from moelab.planner.step_maximum import CUT
from moelab.policies import POLICIES
from moelab.policies.counts import MISSES
from moelab.simulator.result import SimResult


@dataclass(frozen=True, eq=False)
class Bound:
    """``reached`` and ``least`` float64 [S, L] of the phase's steps, in one unit, ``of`` what, per layer-step of
    ``num_layer_steps``. ``oracle``: the run that gave ``least``, where one did."""

    reached: np.ndarray
    least: np.ndarray
    of: str
    num_layer_steps: int
    oracle: SimResult | None = field(default=None, repr=False)

    @property
    def value(self) -> float:
        """The least, per layer-step."""
        return float(self.least.sum()) / max(1, self.num_layer_steps)


def bound_of(
    result: SimResult, plan: Plan, draft: Draft, machine: Machine | None, oracle_run: Callable[[Plan], SimResult]
) -> Bound | None:
    """``None`` where nothing bounds the policy (it prefetches, or is lossy). ``oracle_run`` simulates a plan."""
    if result.node_reads is not None:
        return _of_nodes(result, draft, machine)
    name = POLICIES[plan.policy.name].oracle(plan.policy)
    if name is None:
        return None
    best = oracle_run(plan.model_copy(update={"policy": PolicyChoice(name=name)}))
    reached, least = (_misses(run) for run in (result, best))
    return Bound(reached, least, f"misses per layer-step of {name}", result.num_layer_steps, best)


def read_rates(machine: Machine | None, num_nodes: int) -> np.ndarray:
    """float64 [N]: GB/s of each node alone; ones without a machine."""
    if machine is None:
        return np.ones(num_nodes)
    return np.array([node.best_read_gb_per_s or 1.0 for node in machine.nodes], np.float64)


def _misses(result: SimResult) -> np.ndarray:
    assert result.counts is not None
    return result.counts[phase_steps(result)][:, :, MISSES].astype(np.float64)


def _of_nodes(result: SimResult, draft: Draft, machine: Machine | None) -> Bound:
    """In bytes of the slowest node, at the mean rate."""
    assert result.node_reads is not None
    reads = result.node_reads[phase_steps(result)].astype(np.float64)
    num_nodes = reads.shape[-1]
    rates = read_rates(machine, num_nodes)
    rates = rates / rates.mean()
    total = reads.sum(-1)
    least = total / num_nodes
    is_cut = bool((draft.masks == CUT).any())
    if not is_cut and np.ptp(rates) == 0:
        each = np.maximum(result.node_bytes.sum(0).max(1), 1)  # [L]
        least = np.ceil(np.round(total / each, 6) / num_nodes) * each
    kind = "pieces" if is_cut else "whole experts"
    reached = (reads / rates).max(-1)
    return Bound(reached, least, f"bytes of the fullest node, {kind} spread evenly", result.num_layer_steps)
