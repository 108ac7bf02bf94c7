"""bound: the least that any placement of the kind could reach on the same steps.  Floor 4.

One node: misses of the oracle of the policy's class with the same fast tier (MIN, or MIN with bypass), which sees the
future. Several nodes: the bytes of every layer-step that no fast tier serves, shared evenly by all nodes: whole experts
where none is cut and the nodes are alike, else to the byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.plan import Plan, PolicyChoice
from moelab.exploration.draft import Draft
from moelab.exploration.step_seconds import phase_steps
from moelab.planner.step_maximum import CUT
from moelab.policies import POLICIES
from moelab.simulator.result import SimResult


@dataclass(frozen=True, eq=False)
class Bound:
    """``reached`` and ``least`` in one unit; ``least_reads`` int64 [L, E] of the oracle, where there is one."""

    reached: float
    least: float
    of: str
    least_reads: np.ndarray | None


def bound_of(
    result: SimResult, plan: Plan, draft: Draft, machine: Machine | None, oracle_run: Callable[[Plan], SimResult]
) -> Bound | None:
    """``None`` where nothing bounds the policy (it prefetches, or is lossy). ``oracle_run`` simulates a plan."""
    if result.node_reads is not None:
        return _of_nodes(result, draft, machine)
    name = POLICIES[plan.policy.name].oracle(plan.policy)
    reached = result.misses_per_layer_step
    if name is None or reached is None:
        return None
    best = oracle_run(plan.model_copy(update={"policy": PolicyChoice(name=name)}))
    return Bound(reached, best.misses_per_layer_step or 0.0, f"misses per layer-step of {name}", best.reads)


def _of_nodes(result: SimResult, draft: Draft, machine: Machine | None) -> Bound:
    """In bytes of the slowest node, at the mean rate, per layer-step."""
    assert result.node_reads is not None
    reads = result.node_reads[phase_steps(result)].astype(np.float64)
    num_nodes = reads.shape[-1]
    rates = np.ones(num_nodes)
    if machine is not None:
        rates = np.array([node.best_read_gb_per_s or 1.0 for node in machine.nodes], np.float64)
        rates = rates / rates.mean()
    layer_bytes = result.node_bytes.sum(0).max(1)
    total = reads.sum(-1)
    least = total / num_nodes
    if not (draft.masks == CUT).any() and np.ptp(rates) == 0:
        each = np.maximum(layer_bytes, 1)
        least = np.ceil(np.round(total / each, 6) / num_nodes) * each
    used = max(1, result.num_layer_steps)
    reached = (reads / rates).max(-1).sum() / used
    kind = "whole experts" if not (draft.masks == CUT).any() else "pieces"
    return Bound(float(reached), float(least.sum() / used), f"bytes of the fullest node, {kind} spread evenly", None)
