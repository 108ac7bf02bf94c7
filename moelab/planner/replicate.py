"""replicate: balanced nodes, and every spare byte on the copy that takes most off the fullest node.  Floor 3.

Copies in the order of exact gain per byte over all layers and nodes together (``replica_gains``), so that layers get
what they need: CRAFT (2026, arXiv 2603.28768) budgets replicas by layer likewise, for average loads.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.balanced_packing import balanced_packing
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import NodeProblem, node_problem
from moelab.planner.replica_gains import add_replicas
from moelab.planner.room_repair import repaired


def replicate(trace: Trace, *, score: bool = True, **options: Any) -> Plan:
    """Plan of balanced nodes with copies by gain; ``options``: those of ``node_problem``."""
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    masks = balanced_with_replicas(problem)
    return node_plan(problem, masks, "replicate", seconds=time.perf_counter() - begin, score=score)


def balanced_with_replicas(problem: NodeProblem) -> np.ndarray:
    """int64 [L, E]: one copy by balanced loads within the nodes' shares of memory, then copies by exact gain."""
    node = balanced_packing(
        problem.train.uses, problem.num_nodes, rates=problem.node_rates, share=problem.node_share
    )  # fmt: skip
    masks = repaired(problem, 1 << node)
    return add_replicas(problem, masks, problem.room(masks))
