"""eplb: the placement of DeepSeek's expert-parallel load balancer, as a baseline.  Floor 3.

Balanced average loads with redundant copies (``eplb_rebalance``). At run time our ``dispatch`` chooses the copies by
step, which flatters it: the published one spreads tokens evenly.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.eplb_rebalance import packed_masks
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import node_problem


def eplb(trace: Trace, *, score: bool = True, **options: Any) -> Plan:
    """Plan by EPLB on the loads of the planning requests; ``options``: those of ``node_problem``.

    Raises ``ValueError`` where the experts of a layer do not divide over the nodes.
    """
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    masks, copies = packed_masks(problem.train.uses, problem.num_nodes, problem.how["extra_memory"])
    useless = int(masks.shape[0] * copies - np.bitwise_count(masks).sum())
    problem = problem.lifted(masks)  # in equal numbers, whatever the rates
    return node_plan(
        problem, masks, "eplb", seconds=time.perf_counter() - begin,
        parameters={"copies_per_layer": copies, "useless_copies": useless}, score=score,
    )  # fmt: skip
