"""home_bytes: what one use of an expert reads at home on each node of a plan, copies sharing evenly.  Floor 2."""

from __future__ import annotations

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.unique_rows import unique_rows
from moelab.simulator.planned_pieces import planned_bytes


def home_bytes(plan: Plan, hidden_size: int | None = None) -> np.ndarray:
    """float64 [nodes, L, E]: bytes that one use of an expert reads on each node tier of the plan."""
    nodes = [t for t in plan.tiers if t.startswith("node")]
    shape = (plan.model.num_layers, plan.model.num_experts)
    columns = plan.placements.arrays()
    is_node = np.array([t.startswith("node") for t in plan.tiers])[columns["tier"]]
    layer, expert, start, stop, tier = (columns[n][is_node] for n in ("layer", "expert", "start", "stop", "tier"))
    rows = np.stack([layer * shape[1] + expert, start, stop], axis=1)
    if len(rows):
        _, piece, copies = unique_rows(rows)
        share = 1 / copies[piece]
    else:
        share = np.zeros(0)
    out = np.zeros((len(nodes), *shape))
    for index, name in enumerate(nodes):
        here = tier == plan.tiers.index(name)
        bytes_each = planned_bytes(plan, name, layer[here], start[here], stop[here], hidden_size)
        np.add.at(out[index], (layer[here], expert[here]), share[here] * bytes_each)
    return out
