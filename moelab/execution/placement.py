"""Which node each expert of a replay sits on: as the plan says, else round-robin. Floor 4.

Whole experts on one node each: a replay does not cut an expert into pieces or choose between replicas, and says so.
"""

from __future__ import annotations

import numpy as np

from moelab.domain.plan import Plan
from moelab.execution.folding import Folding
from moelab.kernels import round_robin


def place_on_nodes(plan: Plan, folding: Folding, num_nodes: int) -> tuple[np.ndarray, str]:
    """(node of expert int32 [layers run, experts run], what decided it).

    A plan that names one node says nothing of the others; experts that it keeps on a fast tier alone (which a replay
    runs from RAM) stay round-robin. Raises ``ValueError`` for more nodes than there are, pieces or replicas.
    """
    nodes = round_robin(folding.num_layers, folding.num_experts, num_nodes)
    named = [tier for tier in plan.tiers if tier.startswith("node")]
    if num_nodes == 1 or len(named) == 1:
        return nodes, "round-robin" if num_nodes > 1 else "one node"
    highest = max(int(tier.removeprefix("node")) for tier in named)
    if highest >= num_nodes:
        raise ValueError(
            f"plan has tiers {', '.join(named)}; expected at most the {num_nodes} nodes here: "
            "re-plan, or give --virtual-nodes"
        )
    columns = plan.placements.arrays()
    node_of_tier = np.array([int(t.removeprefix("node")) if t in named else -1 for t in plan.tiers])
    node = node_of_tier[columns["tier"]]
    here = (node >= 0) & (columns["layer"] < folding.num_layers) & (columns["expert"] < folding.num_experts)
    layer, expert = columns["layer"][here], columns["expert"][here]
    whole = (columns["start"][here] == 0) & (columns["stop"][here] == plan.num_units)
    if not whole.all():
        at = int(np.flatnonzero(~whole)[0])
        raise ValueError(
            f"plan cuts layer {layer[at]} expert {expert[at]} into pieces: a replay runs whole experts only"
        )
    copies = np.zeros(nodes.shape, np.int64)
    np.add.at(copies, (layer, expert), 1)
    if (copies > 1).any():
        at_layer, at_expert = np.argwhere(copies > 1)[0]
        raise ValueError(
            f"plan has {copies[at_layer, at_expert]} replicas of layer {at_layer} expert {at_expert}: a replay reads "
            "one copy of each expert"
        )
    nodes[layer, expert] = node[here]
    return nodes, "as the plan says"


def bytes_by_node(ids: np.ndarray, node_of_expert: np.ndarray, num_nodes: int, expert_bytes: int) -> np.ndarray:
    """int64 [L, N] that a step with these ids [T, L, K] reads: every distinct expert of a layer once, on its node."""
    layers = [np.unique(ids[:, layer]) for layer in range(ids.shape[1])]
    return np.stack(
        [
            np.bincount(of_layer[experts[experts < len(of_layer)]], minlength=num_nodes) * expert_bytes
            for experts, of_layer in zip(layers, node_of_expert, strict=True)
        ]
    ).astype(np.int64)
