"""fast_tier_size: what so many slots in each layer are in slots of all layers together, and in bytes.  Floor 4.

Does not know what else lies on the fast tier, nor formats other than the trace's.
"""

from __future__ import annotations

from dataclasses import dataclass

from moelab.domain.trace import TraceHeader


@dataclass(frozen=True)
class FastTierSize:
    """``slots`` of all layers together; ``num_bytes`` of as many experts, ``None`` where the trace does not say."""

    slots: float
    num_bytes: float | None


def fast_tier_size(header: TraceHeader, slots_per_layer: float) -> FastTierSize:
    """Every layer has as many; layers may differ in the bytes of an expert."""
    num_bytes = None if 0 in header.expert_bytes else float(slots_per_layer * sum(header.expert_bytes))
    return FastTierSize(slots_per_layer * header.num_layers, num_bytes)
