"""settings: what the sliders and menus say, and which planners and policies go with them.  Floor 4.

Does not know a trace beyond its header and the names of its extra arrays.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from moelab.planner import FAST_TIER_PLANNERS, NODE_PLANNERS
from moelab.policies import POLICIES

MOST_NODES = 8
CUTTERS = frozenset({"row_split", "split_some"})
"""Planners that cut experts into rows, and so must know how many there are."""


@dataclass(frozen=True)
class Settings:
    """``slots_per_layer`` of fast0 in each layer, 0 to E (over all layers together where a planner or policy divides
    them); ``nodes`` the experts live on; ``extra_memory`` for replicas: bytes as a part of one copy of every expert."""

    slots_per_layer: int = 0
    nodes: int = 1
    extra_memory: float = 0.0
    planner: str = "frequency"
    policy: str = "static"

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MOST_NODES:
            raise ValueError(f"nodes is {self.nodes}, expected 1 to {MOST_NODES}")
        if self.slots_per_layer < 0:
            raise ValueError(f"slots_per_layer is {self.slots_per_layer}, expected 0 or more")
        if not 0 <= self.extra_memory <= self.nodes - 1:
            raise ValueError(
                f"extra_memory is {self.extra_memory}, expected 0 to {self.nodes - 1}: every expert on all nodes"
            )
        for what, name, known in (
            ("planner", self.planner, planners(self.nodes, self.slots_per_layer)),
            ("policy", self.policy, tuple(POLICIES)),
        ):
            if name not in known:
                raise ValueError(
                    f"{what} is {name!r} with {self.nodes} nodes and {self.slots_per_layer} slots in each layer, "
                    f"expected one of {', '.join(known)}"
                )
        if self.nodes > 1 and self.policy != "static":
            raise ValueError(
                f"policy is {self.policy} on {self.nodes} nodes, expected static: no cost model tells the time of "
                "experts that move between a fast tier and several nodes; take one node, or static"
            )


def check_units(settings: Settings, num_units: int) -> None:
    """``num_units`` of 32 rows of an expert, 1 where its size is not known; raises ``ValueError`` for too few."""
    if settings.planner in CUTTERS and num_units < settings.nodes:
        raise ValueError(
            f"{settings.planner} cuts experts over {settings.nodes} nodes, but their intermediate size is not known, "
            f"or has fewer units of 32 rows than that ({num_units}): give model=, or take replicate"
        )


def planners(nodes: int, slots_per_layer: int, num_units: int | None = None) -> tuple[str, ...]:
    """Names of the planners that place on so many nodes, with or without a fast tier, ``num_units`` as above."""
    if nodes == 1:
        return (*FAST_TIER_PLANNERS, "empty")
    if slots_per_layer:
        return ("joint",)
    cannot = {"joint", *(CUTTERS if num_units is not None and num_units < nodes else ())}
    return tuple(name for name in NODE_PLANNERS if name not in cannot)


def policies(nodes: int, extras: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the policies that may run on so many nodes, reading nothing beyond ``extras`` of the trace."""
    if nodes > 1:
        return ("static",)
    return tuple(name for name, policy in POLICIES.items() if not policy.lossy and set(policy.reads) <= set(extras))


def fitting(settings: dict, extras: Collection[str] = ()) -> Settings:
    """``Settings`` of these values, where a planner or policy that does not go with the nodes gives way.

    Numbers are cut to what is possible, as sliders do; names that nobody knows still raise.
    """
    values = dict(settings)
    nodes = values["nodes"] = min(MOST_NODES, max(1, int(values.get("nodes", 1))))
    values["slots_per_layer"] = max(0, int(values.get("slots_per_layer", 0)))
    values["extra_memory"] = min(nodes - 1.0, max(0.0, float(values.get("extra_memory", 0.0))))
    known = {*FAST_TIER_PLANNERS, *NODE_PLANNERS, "empty"}
    goes = planners(nodes, values["slots_per_layer"])
    if values.get("planner") not in goes and values.get("planner", goes[0]) in known:
        values["planner"] = "replicate" if "replicate" in goes else goes[0]
    if values.get("policy") in POLICIES and values["policy"] not in policies(nodes, extras):
        values["policy"] = "static"
    return Settings(**values)
