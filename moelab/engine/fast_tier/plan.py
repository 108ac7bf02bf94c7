"""What of a plan the fast tier can carry out: the checks, the slots and their layout.

fast0, whose experts a policy moves, and further fast tiers that keep what the plan placed there; homes on one node or
on those of the plan, whole or in pieces. What differs is refused by name. Floor 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moelab.domain.plan import FastTier, Plan
from moelab.engine.fast_tier.matrices import MATRICES
from moelab.kernels.job import WEIGHT_FORMATS
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.routed import RoutedExperts

LATE_CHOICES = ("home", "wait", "never")  # what a hit whose copy has not arrived does; never: no copy is made


def check_plan(
    plan: Plan, routed: Sequence[RoutedExperts], late: str = "home", *, num_nodes: int | None = None
) -> None:
    """ValueError (expected, got, fix) for a plan that this engine cannot carry out; the model is checked elsewhere.

    ``num_nodes``: where homes will lie by then; by default as they do now.
    """
    if late not in LATE_CHOICES:
        raise ValueError(f"late: expected one of {', '.join(LATE_CHOICES)}, got {late!r}")
    fast = [each.tier for each in plan.fast_tiers]
    nodes = [tier for tier in plan.tiers if tier.startswith("node")]
    if fast != [f"fast{number}" for number in range(len(fast))] or not fast:
        raise ValueError(
            f"plan has fast tiers {', '.join(fast) or 'none'}; expected fast0, fast1 and so on in order: re-plan"
        )
    if len(nodes) != 1 and len(nodes) != (num_nodes or routed[0].num_nodes):
        raise ValueError(
            f"plan has homes on {', '.join(nodes)}; this engine's lie on {routed[0].num_nodes} nodes: "
            "moelab.apply places them"
        )
    columns = plan.placements.arrays()
    on_fast = np.isin(columns["tier"], [plan.tiers.index(tier) for tier in fast])
    if (((columns["start"] != 0) | (columns["stop"] != plan.num_units)) & on_fast).any():
        raise ValueError(f"plan places pieces of experts on {', '.join(fast)}, whose slots take whole ones: re-plan")
    if not plan.keep_home and late == "never":
        raise ValueError(
            "plan has keep_home false, and late is never: without copies in slots nothing would run; leave late out"
        )
    if plan.policy.parameters.get("overflow"):
        raise ValueError(
            "plan has overflow; the engine's slots are allocated once, so nothing fits beyond them: re-plan without it"
        )
    node = nodes[0]
    home, at_home = plan.format_of_tier[node], routed[0].layout
    if home.weight_format in WEIGHT_FORMATS and home.weight_format != at_home.weight_format:
        raise ValueError(
            f"plan has {home.weight_format} homes on {node}; this engine's are {at_home.weight_format}: "
            "re-plan on a trace of this engine"
        )
    if set(home.expert_bytes) - {0, at_home.expert_bytes}:
        raise ValueError(
            f"plan says {sorted(set(home.expert_bytes))} bytes for an expert on {node}; this engine's take "
            f"{at_home.expert_bytes}: re-plan on a trace of this engine"
        )
    for number, tier in enumerate(fast):
        layout = slot_layout(plan, number, routed[0].layout)
        planned = set(plan.format_of_tier[tier].expert_bytes)
        if planned - {0, layout.expert_bytes}:
            raise ValueError(
                f"plan says {sorted(planned)} bytes for an expert on {tier}; {layout.weight_format} slots of this "
                f"model take {layout.expert_bytes}: re-plan on a trace of this engine"
            )


def fast_tier_names(plan: Plan) -> list[str]:
    """fast0, fast1, ... in the order of their numbers in a policy's state."""
    return [each.tier for each in plan.fast_tiers]


def slot_layout(plan: Plan, number: int, home: ExpertLayout) -> ExpertLayout:
    """The layout of the bytes that cross the link of a tier: sizes of the home, format of the tier."""
    return layout_of_slots(plan.format_of_tier[fast_tier_names(plan)[number]].weight_format, home)


def layout_of_slots(weight_format: str, home: ExpertLayout) -> ExpertLayout:
    """ValueError for a format that no slot has."""
    known = next((name for name in WEIGHT_FORMATS if name == weight_format and name in MATRICES), None)
    if known is None:
        raise ValueError(
            f"format of the fast tier: expected one of {', '.join(MATRICES)}, got {weight_format!r}; plan with one"
        )
    return ExpertLayout(home.hidden_size, home.intermediate_size, known)


def num_slots_of(plan: Plan) -> list[int]:
    """Slots of each fast tier over all layers; of a capacity in bytes, as many as the smallest experts would fill."""
    return [_num_slots(plan, fast) for fast in plan.fast_tiers]


def _num_slots(plan: Plan, fast: FastTier) -> int:
    if fast.slots_per_layer is not None:
        return sum(fast.slots_per_layer)
    if fast.slots is not None:
        return fast.slots
    assert fast.capacity_bytes is not None
    return fast.capacity_bytes // min(plan.format_of_tier[fast.tier].expert_bytes)
