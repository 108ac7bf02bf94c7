"""plan_nodes: on how many virtual nodes a plan runs here, where it has more nodes than the machine.  Floor 1.

Nodes of the machine are used as they are where there are enough of them; else the cores are divided into as many
virtual nodes as the plan has, each of a core at least. Knows tiers' names and places; does not know experts.
"""

from __future__ import annotations

from moelab.domain.plan import Plan
from moelab.kernels.places import places


def num_nodes_of(plan: Plan) -> int:
    """Nodes that the plan's tiers count with: 3 for node0 and node2."""
    return 1 + max((int(tier.removeprefix("node")) for tier in plan.tiers if tier.startswith("node")), default=0)


def virtual_nodes_for(*plans: Plan, asked: int | None = None, num_workers: int | None = None) -> int | None:
    """``virtual_nodes`` of a ``Pool`` that all these plans run on: what was ``asked`` for, ``None`` where the machine's
    own nodes are enough, else those of the plan that has most.

    Raises ``ValueError`` where the machine (or ``num_workers``) has fewer cores than that plan has nodes.
    """
    wanted = max(map(num_nodes_of, plans), default=1)
    if asked is not None or wanted == 1:
        return asked
    here = places(num_workers)
    if 1 + max(place.node for place in here) >= wanted:
        return None
    if len(here) < wanted:
        raise ValueError(
            f"plan has {wanted} nodes; expected at most {len(here)} on this machine, a core (and worker) for each "
            f"virtual node: re-plan with --nodes {len(here)}"
        )
    return wanted
