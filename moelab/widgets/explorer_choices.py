"""explorer_choices: what the sliders and menus of a ``PlacementExplorer`` offer, and the split in words.  Floor 6."""

from __future__ import annotations

from typing import Any

from moelab.domain.trace import Trace
from moelab.exploration import MAP_LAYERS, Exploration, Settings
from moelab.exploration.settings import MOST_NODES, planners, policies
from moelab.policies import POLICIES


def first_settings(exploration: Exploration) -> Settings:
    """One node, and of the experts a tenth on the fast tier, or as many as the machine's holds beside the rest."""
    num_experts, slot_bytes = exploration.trace.header.num_experts, sum(exploration.expert_bytes)
    slots, machine = max(1, num_experts // 10), exploration.machine
    if machine is not None and machine.fast_tiers and slot_bytes:
        room = machine.fast_tiers[0].memory_bytes - exploration.other_bytes
        slots = min(slots, max(0, room // slot_bytes))
    return Settings(int(slots))


def choices_of(exploration: Exploration, settings: Settings) -> dict[str, Any]:
    """``planners``, ``policies`` (with the oracles, which see the future, named), ``nodes``, and sizes in bytes."""
    machine, header = exploration.machine, exploration.trace.header
    have = len(machine.nodes) if machine is not None else 1
    nodes = [n for n in range(1, MOST_NODES + 1) if n <= have or n % have == 0]
    all_policies = policies(settings.nodes, exploration.trace.extras)
    fast = machine.fast_tiers[0].memory_bytes if machine is not None and machine.fast_tiers else None
    return {
        "planners": list(planners(settings.nodes, settings.slots_per_layer, exploration.num_units)),
        "policies": list(all_policies),
        "oracles": [name for name in all_policies if POLICIES[name].needs_next_use],
        "nodes": nodes,
        "nodes_of_machine": have,
        "most_slots": header.num_experts,
        "slot_bytes": sum(exploration.expert_bytes),  # of one slot in each layer
        "all_bytes": sum(exploration.expert_bytes) * header.num_experts,
        "fast_bytes": fast,
        "colours": list(MAP_LAYERS),
        "tiers": [*(["fast0"] if settings.slots_per_layer else []), *(f"node{n}" for n in range(settings.nodes))],
    }


def split_of(exploration: Exploration) -> dict[str, Any]:
    """Tokens and requests of the planning and the held-out part, and how they were divided."""

    def part(trace: Trace) -> dict[str, int]:
        return {"tokens": trace.num_tokens, "requests": len(set(trace.tokens.request.tolist()))}

    machine = exploration.machine
    return {
        "how": exploration.how["split"],
        "train": part(exploration.train),
        "test": part(exploration.test),
        "phase": exploration.phase or "all",
        "model": exploration.trace.header.model,
        "synthetic": exploration.trace.header.synthetic,
        "machine": None if machine is None else f"{machine.name} ({machine.source})",
    }
