"""interleave: pages of every expert alternate over the nodes (``numactl --interleave``): a baseline.  Floor 3.

Every node's memory gives K / N of the bytes, as with ``row_split``, but whoever computes reads (N - 1) / N of them from
other nodes. A plan cannot say pages, so pieces of rows stand for them; ``remote_share`` stands in the prediction, and
where the machine has measured remote rates, ``remote_slowdown`` does: the time of that mixture over local reads alone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.step_maximum import CUT


def interleave(trace: Trace, *, score: bool = True, **options: Any) -> Plan:
    """Plan of equal pieces on all nodes; ``options``: those of ``node_problem``."""
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    masks = np.full(problem.shape, CUT)
    problem = replace(problem, budget=problem.used(masks))  # uneven where units do not divide
    slowdown = remote_slowdown(problem.machine, problem.num_nodes)
    notes = {
        "remote_share": (problem.num_nodes - 1) / problem.num_nodes,
        "remote_slowdown": "not measured: remote reads count as local" if slowdown is None else slowdown,
    }
    return node_plan(problem, masks, "interleave", seconds=time.perf_counter() - begin, notes=notes, score=score)


def remote_slowdown(machine: Machine | None, num_nodes: int) -> float | None:
    """Time of reading 1 / N from each node over reading all from the own; ``None`` where a rate is not measured.

    Of the slowest node; reads of different nodes follow one another in a thread, so times add up.
    """
    if machine is None or num_nodes > len(machine.nodes):
        return None
    worst = 0.0
    for node in machine.nodes[:num_nodes]:
        local = node.best_read_gb_per_s
        remote = [node.remote_read_gb_per_s.get(other.name) for other in machine.nodes[:num_nodes] if other is not node]
        if not local or not all(remote):
            return None
        worst = max(worst, (1 + sum(local / rate for rate in remote if rate)) / num_nodes)
    return worst
