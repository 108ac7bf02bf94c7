"""Where each expert of a replay lies: as the plan says, whole or in pieces, with copies; else round-robin. Floor 4."""

from __future__ import annotations

from moelab.domain.plan import Plan
from moelab.domain.plan_copies import Copies, copies_on_nodes, whole_on
from moelab.execution.folding import Folding
from moelab.kernels import round_robin


def place_on_nodes(plan: Plan, folding: Folding, num_nodes: int, num_units: int) -> tuple[list[Copies], str]:
    """(copies of each layer that runs, what decided it); ``num_units`` of the experts that run.

    A plan that names one node says nothing of the others; experts that it keeps on a fast tier alone (which a replay
    runs from RAM) go round-robin. Raises ``ValueError`` for more nodes than there are.
    """
    spread = round_robin(folding.num_layers, folding.num_experts, num_nodes)
    if num_nodes == 1 or sum(tier.startswith("node") for tier in plan.tiers) == 1:
        copies = [whole_on(of_layer, num_units) for of_layer in spread]
        return copies, "round-robin" if num_nodes > 1 else "one node"
    return copies_on_nodes(plan, spread, num_nodes, num_units), "as the plan says"
