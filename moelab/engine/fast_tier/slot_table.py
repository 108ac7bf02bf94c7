"""SlotTable: which expert lies in which slot; every change is written down.

Any slot of a tier takes any expert of any layer: how many a layer may have is the policy's contract. The free slot
that was given back last is taken first. Slots are numbered through, those of fast0 first.
Knows neither policies nor bytes. Floor 2: NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NOWHERE = -1
"""In `slot_of_expert`: this expert is in no slot."""


class SlotTable:
    """`slot_of_expert` int32 [L, E], `expert_of_slot` int64 [S, 2] (layer, expert); `NOWHERE` where there is none."""

    def __init__(self, num_layers: int, num_experts: int, num_slots_of_tier: Sequence[int]) -> None:
        num_slots = sum(num_slots_of_tier)
        self.slot_of_expert = np.full((num_layers, num_experts), NOWHERE, np.int32)
        self.expert_of_slot = np.full((num_slots, 2), NOWHERE, np.int64)
        ends = np.cumsum(num_slots_of_tier).tolist()
        self._tier_of_slot = np.repeat(np.arange(len(ends)), num_slots_of_tier)
        starts = [0, *ends[:-1]]
        self._free = [list(reversed(range(start, end))) for start, end in zip(starts, ends, strict=True)]

    def take(self, layer: int, expert: int, tier: int = 0) -> int:
        """A free slot of a tier for an expert. RuntimeError where there is none, or the expert has one."""
        free = self._free[tier]
        if not free or self.slot_of_expert[layer, expert] != NOWHERE:
            raise RuntimeError(
                f"layer {layer} expert {expert}: expected a free slot and an expert without one, got {len(free)} "
                f"free and slot {self.slot_of_expert[layer, expert]}: the policy's room and the slots disagree"
            )
        slot = free.pop()
        self.slot_of_expert[layer, expert] = slot
        self.expert_of_slot[slot] = layer, expert
        return slot

    def release(self, layer: int, expert: int) -> int:
        """The slot that the expert gives back. RuntimeError where it has none."""
        slot = int(self.slot_of_expert[layer, expert])
        if slot == NOWHERE:
            raise RuntimeError(f"layer {layer} expert {expert}: expected it in a slot, got none: it cannot be evicted")
        self.slot_of_expert[layer, expert] = NOWHERE
        self.expert_of_slot[slot] = NOWHERE
        self._free[self._tier_of_slot[slot]].append(slot)
        return slot

    @property
    def resident(self) -> np.ndarray:
        """bool [L, E]."""
        return self.slot_of_expert != NOWHERE
