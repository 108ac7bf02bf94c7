"""round_robin: expert e lives on node e mod N, whatever was routed: a baseline.  Floor 3.

What loaders do that deal experts out in turn. Extra memory is not used.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import node_problem


def round_robin(trace: Trace, *, score: bool = True, **options: Any) -> Plan:
    """Plan of whole experts dealt out in turn; ``options``: those of ``node_problem``."""
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    num_layers, num_experts = problem.shape
    node = (np.arange(num_experts) + np.arange(num_layers)[:, None] * num_experts) % problem.num_nodes
    problem = problem.lifted(1 << node)  # in equal numbers, whatever the rates
    return node_plan(problem, 1 << node, "round_robin", seconds=time.perf_counter() - begin, score=score)
