"""coact: experts that serve the same steps live on different nodes; spare memory goes where it gains most.  Floor 3.

Pair counts shrunk towards independence (``coactivation_split``), how strongly is chosen on a third of the planning
requests; then copies by their exact gain (``replica_gains``). Cheaper than ``anneal`` and a sum of pairs, not the
maximum itself.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.coactivation_split import split_by_coactivation
from moelab.planner.inner_split import choose_by_inner_split
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import NodeProblem, node_problem
from moelab.planner.replica_gains import add_replicas
from moelab.planner.room_repair import repaired

SHRINKS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def coact(trace: Trace, *, shrink: float | None = None, score: bool = True, **options: Any) -> Plan:
    """Plan by shrunk co-activation; ``shrink`` 0 to 1 instead of the choice; ``options``: those of ``node_problem``."""
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    masks, parameters = coact_masks(problem, shrink)
    return node_plan(
        problem, masks, "coact", seconds=time.perf_counter() - begin, parameters=parameters, score=score
    )  # fmt: skip


def coact_masks(problem: NodeProblem, shrink: float | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """(masks int64 [L, E], how strongly it shrinks and what that was chosen by)."""
    chosen: dict[str, Any] = {}
    if shrink is None:
        shrink, means = choose_by_inner_split(
            problem, SHRINKS, lambda steps, value: 1 << split_by_coactivation(problem, steps, value)
        )
        chosen = {"judged_mean_max_of_shrink": {str(value): mean for value, mean in means.items()}}
    elif not 0 <= shrink <= 1:
        raise ValueError(f"shrink is {shrink}, expected 0 (counts as they are) to 1 (independence)")
    masks = repaired(problem, 1 << split_by_coactivation(problem, problem.train, shrink))
    return add_replicas(problem, masks, problem.room(masks)), {"shrink": shrink, **chosen}
