"""search: a planner, called with what the settings and the exploration say.  Floor 4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moelab.domain.plan import Plan
from moelab.exploration.settings import Settings
from moelab.planner import NODE_PLANNERS, PLANNERS, empty

if TYPE_CHECKING:
    from moelab.exploration.explore import Exploration


def search(of: Exploration, settings: Settings) -> Plan:
    """The plan of ``settings.planner``, without its own score: figures are ours."""
    slots, num_layers = min(settings.slots_per_layer, of.trace.header.num_experts), of.trace.header.num_layers
    planner = settings.planner
    sizes: dict[str, Any] = {"expert_bytes": of.expert_bytes}
    if planner == "empty":
        return empty(of.trace, slots_per_layer=slots, policy="static", **sizes)
    options: dict[str, Any] = {**sizes, "held_out": of.held_out, "seed": of.seed, "phase": of.phase}
    if planner == "water_filled":  # scores itself: it compares with equal slots
        return PLANNERS[planner](of.trace, slots_per_layer=slots, **options)
    options |= {"moe_intermediate_size": of.intermediate, "score": False}
    if planner in NODE_PLANNERS:
        options |= {"nodes": settings.nodes, "extra_memory": settings.extra_memory}
        if of.machine is not None and len(of.machine.nodes) == settings.nodes:
            options["machine"] = of.machine
        if planner == "joint":
            options["fast_slots"] = slots * num_layers
        return PLANNERS[planner](of.trace, **options)
    return PLANNERS[planner](of.trace, slots_per_layer=slots, **options)
