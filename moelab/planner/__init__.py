"""Floor 3. A planner is one pure function (trace, model, machine, budget) -> Plan, one file each.

``PLANNERS`` finds it by name. Those of ``FAST_TIER_PLANNERS`` choose what a fast tier holds (budget in slots); those of
``NODE_PLANNERS`` choose the NUMA node, the replicas and the pieces of every expert (budget in extra memory), ``joint``
both, ``best`` is the one of them that does best inside the planning requests. A new planner is a new file and a line
here. ``empty`` finds nothing, so it is not among them: it is the fast tier that a policy fills. Nor is ``sequential``,
which ``joint`` starts from and is never behind on the planning steps.
"""

from __future__ import annotations

from collections.abc import Callable

from moelab.domain.plan import Plan
from moelab.planner.anneal import anneal
from moelab.planner.best import best
from moelab.planner.coact import coact
from moelab.planner.empty import empty
from moelab.planner.eplb import eplb
from moelab.planner.fastest import fastest
from moelab.planner.frequency import frequency
from moelab.planner.front_loading import front_loading
from moelab.planner.interleave import interleave
from moelab.planner.joint import joint
from moelab.planner.layer_balanced import layer_balanced
from moelab.planner.mirror import mirror
from moelab.planner.random import random
from moelab.planner.random_nodes import random_nodes
from moelab.planner.replicate import replicate
from moelab.planner.round_robin import round_robin
from moelab.planner.row_split import row_split
from moelab.planner.sequential import sequential
from moelab.planner.split_some import split_some
from moelab.planner.uniform import uniform
from moelab.planner.water_filled import water_filled

FAST_TIER_PLANNERS: dict[str, Callable[..., Plan]] = {
    "frequency": frequency,
    "uniform": uniform,
    "front_loading": front_loading,
    "random": random,
    "layer_balanced": layer_balanced,
    "water_filled": water_filled,
}

NODE_PLANNERS: dict[str, Callable[..., Plan]] = {
    "interleave": interleave,
    "round_robin": round_robin,
    "random_nodes": random_nodes,
    "eplb": eplb,
    "mirror": mirror,
    "row_split": row_split,
    "coact": coact,
    "replicate": replicate,
    "anneal": anneal,
    "split_some": split_some,
    "best": best,
    "joint": joint,
    "fastest": fastest,
}

PLANNERS: dict[str, Callable[..., Plan]] = {**FAST_TIER_PLANNERS, **NODE_PLANNERS}

__all__ = [
    "FAST_TIER_PLANNERS", "NODE_PLANNERS", "PLANNERS", "anneal", "best", "coact", "empty", "eplb", "fastest",
    "frequency",
    "front_loading", "interleave", "joint", "layer_balanced", "mirror", "random", "random_nodes", "replicate",
    "round_robin", "row_split", "sequential", "split_some", "uniform", "water_filled",
]  # fmt: skip
