"""Where each expert of a replay lies: as the plan says, whole or in pieces, with copies; else round-robin. Floor 4.

``Copies`` of one layer are int64 columns (expert, start, stop, node) of equal length, units of the experts that run.
"""

from __future__ import annotations

import numpy as np

from moelab.domain.plan import Plan
from moelab.execution.folding import Folding
from moelab.kernels import round_robin

Copies = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def place_on_nodes(plan: Plan, folding: Folding, num_nodes: int, num_units: int) -> tuple[list[Copies], str]:
    """(copies of each layer that runs, what decided it); ``num_units`` of the experts that run.

    A plan that names one node says nothing of the others; experts that it keeps on a fast tier alone (which a replay
    runs from RAM) go round-robin. Pieces of a plan for another expert shape are cut at the same parts of the rows.
    Raises ``ValueError`` for more nodes than there are.
    """
    shape = (folding.num_layers, folding.num_experts)
    spread = round_robin(*shape, num_nodes)
    named = [tier for tier in plan.tiers if tier.startswith("node")]
    if num_nodes == 1 or len(named) == 1:
        copies = [whole_on(spread[layer], num_units) for layer in range(shape[0])]
        return copies, "round-robin" if num_nodes > 1 else "one node"
    highest = max(int(tier.removeprefix("node")) for tier in named)
    if highest >= num_nodes:
        raise ValueError(
            f"plan has tiers {', '.join(named)}; expected at most the {num_nodes} nodes here: "
            "re-plan, or give --virtual-nodes"
        )
    columns = plan.placements.arrays()
    node_of_tier = np.array([int(t.removeprefix("node")) if t in named else -1 for t in plan.tiers])
    node = node_of_tier[columns["tier"]]
    here = (node >= 0) & (columns["layer"] < shape[0]) & (columns["expert"] < shape[1])
    # The same border for the piece before and the one after it, so that they still partition the expert.
    start, stop = (np.rint(columns[name] * num_units / plan.num_units).astype(np.int64) for name in ("start", "stop"))
    here &= start < stop  # a piece of less than half a unit
    copies = []
    for layer in range(shape[0]):
        mine = here & (columns["layer"] == layer)
        rows = np.stack([columns["expert"][mine], start[mine], stop[mine], node[mine]], axis=1)
        homeless = np.setdiff1d(np.arange(shape[1]), rows[:, 0])
        rest = np.stack(whole_on(spread[layer], num_units), axis=1)[homeless]
        rows = np.unique(np.concatenate([rows, rest]), axis=0)
        copies.append((rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]))
    return copies, "as the plan says"


def whole_on(node_of_expert: np.ndarray, num_units: int) -> Copies:
    """Every expert whole, once, on its node [E]."""
    nodes = np.asarray(node_of_expert, np.int64)
    zeros = np.zeros(len(nodes), np.int64)
    return np.arange(len(nodes)), zeros, zeros + num_units, nodes
