"""coactivation_split: experts that serve the same steps go to different nodes: local search on pair counts.  Floor 3.

With z the nodes of the experts and C their second moments, the expected square of a node's load is the sum of C over
pairs on it, so pairs on one node are made few ("reverse" k-way cut, NP-hard): start from balanced packing, swap pairs
of experts of different nodes while that lowers the sum (Kernighan and Lin 1970, single swaps). Counts of few requests
overfit, so they are shrunk towards independence, C' = (1 - shrink) C + shrink p_e p_f. Does not know replicas.
"""

from __future__ import annotations

import numpy as np

from moelab.planner.balanced_packing import balanced_packing
from moelab.planner.compiled import compiled
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import NodeProblem


def split_by_coactivation(problem: NodeProblem, steps: LayerSteps, shrink: float) -> np.ndarray:
    """``node_of_expert`` int64 [L, E] from the pairs of ``steps``; ``shrink`` 0 (counts as they are) to 1."""
    num_layers, num_experts = problem.shape
    num_steps = np.bincount(steps.layer, minlength=num_layers)
    nodes = balanced_packing(
        steps.uses, problem.num_nodes, rates=problem.node_rates, share=problem.node_share
    )  # fmt: skip
    first = np.searchsorted(steps.layer, np.arange(num_layers + 1))
    pairs = np.empty((num_experts, num_experts))
    pull = np.empty((num_experts, problem.num_nodes))
    for layer in range(num_layers):
        pairs[:] = 0
        _count_pairs(steps.offsets, steps.keys, first[layer], first[layer + 1], layer * num_experts, pairs)
        share = steps.uses[layer] / max(1, num_steps[layer])
        shrunk = (1 - shrink) * pairs + shrink * num_steps[layer] * share[:, None] * share
        np.fill_diagonal(shrunk, 0)
        _swap_pairs(shrunk, nodes[layer], pull, 1 / problem.node_rates)
    return nodes


@compiled
def _count_pairs(offsets, keys, first, last, first_key, pairs):
    for step in range(first, last):
        for i in range(offsets[step], offsets[step + 1]):
            for j in range(offsets[step], offsets[step + 1]):
                pairs[keys[i] - first_key, keys[j] - first_key] += 1


@compiled
def _swap_pairs(pairs, node, pull, slow):
    """Swaps until none helps; ``pull[e, n]``: pairs of e with the experts of node n; nodes count times slowness."""
    num_experts, num_nodes = pull.shape
    for e in range(num_experts):
        for n in range(num_nodes):
            pull[e, n] = 0
        for f in range(num_experts):
            pull[e, node[f]] += pairs[e, f]
    is_better = True
    while is_better:
        is_better = False
        for e in range(num_experts):
            for f in range(e + 1, num_experts):
                a, b = node[e], node[f]
                if a == b:
                    continue
                gain = slow[a] * (pull[e, a] - pull[f, a] + pairs[e, f])
                gain += slow[b] * (pull[f, b] - pull[e, b] + pairs[e, f])
                if gain > 1e-9:
                    for g in range(num_experts):
                        moved = pairs[g, f] - pairs[g, e]
                        pull[g, a] += moved
                        pull[g, b] -= moved
                    node[e], node[f] = b, a
                    is_better = True
