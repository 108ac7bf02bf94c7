"""interleave: pages of every expert alternate over the nodes (``numactl --interleave``): a baseline.  Floor 3.

Every node's memory gives K / N of the bytes, as with ``row_split``, but whoever computes reads (N - 1) / N of them from
other nodes. A plan cannot say pages, so pieces of rows stand for them, and all of its times are those of the pieces
times ``remote_slowdown``. Where the machine has no measured remote rates nothing is predicted: ``heldout_mean_max`` is
then of bytes alone, and there are neither milliseconds nor gains.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from moelab.cost_model.remote_slowdown import remote_slowdown
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
        "remote_slowdown": "not measured: no time is predicted, experts are of bytes alone" if slowdown is None
        else slowdown,
    }  # fmt: skip
    return node_plan(
        problem, masks, "interleave", seconds=time.perf_counter() - begin, notes=notes, slowdown=slowdown, score=score
    )
