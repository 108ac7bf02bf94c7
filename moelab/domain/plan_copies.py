"""plan_copies: the copies on node tiers that a plan asks for, layer by layer, in the units of the experts that run.

``Copies`` of one layer are int64 columns (expert, start, stop, node) of equal length, one row a copy of a piece, units
of 32 intermediate rows. Does not know memory. Floor 0: NumPy.
"""

from __future__ import annotations

import numpy as np

from moelab.domain.plan import Plan

Copies = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def copies_on_nodes(plan: Plan, node_of_homeless: np.ndarray, num_nodes: int, num_units: int) -> list[Copies]:
    """Of the first L layers and E experts, ``node_of_homeless`` [L, E] being where experts without a node tier go.

    ``num_units`` of the experts that run: pieces of a plan for another expert shape are cut at the same parts of the
    rows, and what would be less than half a unit goes to its neighbour. Raises ``ValueError`` for more nodes than
    ``num_nodes``.
    """
    num_layers, num_experts = node_of_homeless.shape
    named = [tier for tier in plan.tiers if tier.startswith("node")]
    if max(int(tier.removeprefix("node")) for tier in named) >= num_nodes:
        raise ValueError(
            f"plan has tiers {', '.join(named)}; expected at most the {num_nodes} nodes here: "
            "re-plan, or take more virtual nodes (--virtual-nodes)"
        )
    columns = plan.placements.arrays()
    node_of_tier = np.array([int(t.removeprefix("node")) if t in named else -1 for t in plan.tiers])
    node = node_of_tier[columns["tier"]]
    here = (node >= 0) & (columns["layer"] < num_layers) & (columns["expert"] < num_experts)
    # The same border for the piece before and the one after it, so that they still partition the expert.
    start, stop = (np.rint(columns[name] * num_units / plan.num_units).astype(np.int64) for name in ("start", "stop"))
    here &= start < stop
    copies = []
    for layer in range(num_layers):
        mine = here & (columns["layer"] == layer)
        rows = np.stack([columns["expert"][mine], start[mine], stop[mine], node[mine]], axis=1)
        homeless = np.setdiff1d(np.arange(num_experts), rows[:, 0])
        rest = np.stack(whole_on(node_of_homeless[layer], num_units), axis=1)[homeless]
        rows = np.unique(np.concatenate([rows, rest]), axis=0)
        copies.append((rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]))
    return copies


def has_several(copies: Copies) -> bool:
    """Has some piece more than one copy, so that there is something to choose?"""
    return len(np.unique(np.stack(copies[:3]), axis=1).T) < len(copies[0])


def whole_on(node_of_expert: np.ndarray, num_units: int) -> Copies:
    """Every expert whole, once, on its node [E]."""
    nodes = np.asarray(node_of_expert, np.int64)
    zeros = np.zeros(len(nodes), np.int64)
    return np.arange(len(nodes)), zeros, zeros + num_units, nodes
