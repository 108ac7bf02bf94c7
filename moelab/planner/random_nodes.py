"""random_nodes: experts dealt out to nodes by lot, equal numbers in each layer; spare memory by lot too.  Floor 3.

The floor under every placement. Without replicas and at even loads the mean of the maximum is hypergeometric: 5.08 of
K / N = 4 for K2's shape on two nodes.
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


def random_nodes(trace: Trace, *, placement_seed: int = 42, score: bool = True, **options: Any) -> Plan:
    """Plan drawn with ``placement_seed``; ``options``: those of ``node_problem``."""
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    masks = dealt_out(problem, placement_seed)
    return node_plan(
        problem, masks, "random_nodes", seconds=time.perf_counter() - begin,
        parameters={"placement_seed": placement_seed}, score=score,
    )  # fmt: skip


def dealt_out(problem: NodeProblem, seed: int) -> np.ndarray:
    """int64 [L, E]: one copy by lot in the nodes' shares, then copies by lot while there is room."""
    rng = np.random.default_rng(seed)
    order = rng.random(problem.shape)  # packing by random loads of one rank is a deal in equal numbers
    node = balanced_packing(np.ones(problem.shape), problem.num_nodes, share=problem.node_share)
    masks = 1 << np.take_along_axis(node, np.argsort(order, axis=1), axis=1)
    room = problem.room(masks)
    for place in rng.permutation(masks.size * problem.num_nodes):
        key, tier = divmod(int(place), problem.num_nodes)
        layer, expert = divmod(key, problem.shape[1])
        if not masks[layer, expert] >> tier & 1 and room[tier] >= problem.tier_bytes[tier, layer]:
            masks[layer, expert] |= 1 << tier
            room[tier] -= problem.tier_bytes[tier, layer]
    return masks
