"""memory: what each tier must hold under a plan, against what the machine has.  Floor 4.

Experts by their formats and pieces, the fast tier by its slots whether filled or not; the rest of the model (attention,
dense layers, embeddings, cache) on the first fast tier, else on node0. Engine buffers are not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.plan import Plan


@dataclass(frozen=True)
class TierMemory:
    """Bytes; ``other_bytes``: the model beside its routed experts. ``machine_bytes`` ``None``: the machine has no such
    tier, or none was given."""

    tier: str
    expert_bytes: int
    other_bytes: int
    machine_bytes: int | None

    @property
    def total_bytes(self) -> int:
        return self.expert_bytes + self.other_bytes

    @property
    def fits(self) -> bool | None:
        return None if self.machine_bytes is None else self.total_bytes <= self.machine_bytes

    def as_dict(self) -> dict[str, Any]:
        return {
            "tier": self.tier, "expert_bytes": self.expert_bytes, "other_bytes": self.other_bytes,
            "machine_bytes": self.machine_bytes, "fits": self.fits,
        }  # fmt: skip


def memory_of_tiers(plan: Plan, machine: Machine | None, other_bytes: int) -> tuple[TierMemory, ...]:
    """One row for each tier of ``plan``, in its order."""
    columns = plan.placements.arrays()
    sizes: dict[str, int] = {}
    if machine is not None:
        sizes |= {f"node{n}": node.memory_bytes for n, node in enumerate(machine.nodes)}
        sizes |= {f"fast{n}": tier.memory_bytes for n, tier in enumerate(machine.fast_tiers)}
    bearer = "fast0" if "fast0" in plan.tiers and "fast0" in sizes else "node0"
    rows = []
    for index, tier in enumerate(plan.tiers):
        each = np.asarray(plan.format_of_tier[tier].expert_bytes, np.int64)
        fast = next((one for one in plan.fast_tiers if one.tier == tier), None)
        if fast is None:
            here = columns["tier"] == index
            whole = each[columns["layer"][here]]
            held = int((whole * (columns["stop"] - columns["start"])[here] // plan.num_units).sum())
        elif fast.slots_per_layer is not None:
            held = int(np.asarray(fast.slots_per_layer) @ each)
        elif fast.capacity_bytes is not None:
            held = fast.capacity_bytes
        else:  # a free slot may come to hold the largest expert
            there = plan.resident(tier).sum(1)
            held = int(there @ each) + ((fast.slots or 0) - int(there.sum())) * int(each.max())
        rows.append(TierMemory(tier, held, other_bytes if tier == bearer else 0, sizes.get(tier)))
    return tuple(rows)


def other_bytes(model: ModelSpec | None, context: int) -> int:
    """Bytes of everything but the routed experts, with a cache of ``context`` tokens; 0 where that is not known."""
    if model is None or not model.sizes_exact:
        return 0
    parts = model.memory(context).bytes_of_part
    return sum(size for part, size in parts.items() if part != "routed_experts")
