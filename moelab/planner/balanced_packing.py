"""balanced_packing: experts to nodes so that loads are even and numbers equal.  Floor 3.

EPLB's packing (deepseek-ai/EPLB, 2025): heaviest expert first, to the node of least load that has room for one more;
LPT (Graham 1969) with a bound on numbers. Balances the average load, not the fullest node of a step.
"""

from __future__ import annotations

import numpy as np


def balanced_packing(
    loads: np.ndarray, num_nodes: int, *, rates: np.ndarray | None = None, share: np.ndarray | None = None
) -> np.ndarray:
    """``node_of_expert`` int64 [L, E] from ``loads`` [L, E]; ties: the lower expert, the lower node.

    ``rates`` [num_nodes]: a node's load counts divided by its rate; ``share`` [num_nodes]: its part of the experts,
    by default all alike. What does not divide goes round over the layers.
    """
    num_layers, num_experts = loads.shape
    speed = np.ones(num_nodes) if rates is None else np.asarray(rates, np.float64)
    part = np.ones(num_nodes) if share is None else np.asarray(share, np.float64)
    node_of_expert = np.zeros(loads.shape, np.int64)
    given = np.zeros(num_nodes, np.int64)
    for layer in range(num_layers):
        so_far = whole_shares((layer + 1) * num_experts, part)
        room = np.maximum(so_far - given, 0)
        load = np.zeros(num_nodes)
        for expert in np.argsort(-loads[layer], kind="stable"):
            node = int(np.argmin(np.where(room > 0, load / speed, np.inf)))
            node_of_expert[layer, expert] = node
            load[node] += loads[layer, expert]
            room[node] -= 1
        given += np.bincount(node_of_expert[layer], minlength=num_nodes)
    return node_of_expert


def whole_shares(total: int, part: np.ndarray) -> np.ndarray:
    """``total`` units in proportion to ``part`` [N], whole ones: largest remainders first, ties to the lower place."""
    exact = total * part / part.sum()
    out = np.floor(exact + 1e-9).astype(np.int64)
    out[np.argsort(out - exact, kind="stable")[: total - out.sum()]] += 1
    return out
