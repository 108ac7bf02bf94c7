"""mirror: every expert on every node: ceil(K / N) in each step, at N times the memory.  Floor 3.

KTransformers' former ``USE_NUMA=1`` and llama.cpp's ``--numa mirror``. The bound of all planners of whole experts; it
allows itself the memory that it takes.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import node_problem


def mirror(trace: Trace, *, score: bool = True, **options: Any) -> Plan:
    """Plan with copies everywhere; ``options``: those of ``node_problem``, where ``extra_memory`` is taken as N - 1.

    Raises ``ValueError`` where ``node_bytes`` are given and a node cannot hold everything.
    """
    problem = node_problem(trace, **options)
    if options.get("node_bytes") is None:
        problem = node_problem(trace, **{**options, "extra_memory": float(problem.num_nodes - 1)})
    begin = time.perf_counter()
    masks = np.full(problem.shape, (1 << problem.num_nodes) - 1)
    if options.get("node_bytes") is None:
        problem = replace(problem, budget=problem.used(masks))  # everything on every node, whatever their rates
    return node_plan(problem, masks, "mirror", seconds=time.perf_counter() - begin, score=score)
