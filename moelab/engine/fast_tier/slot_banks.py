"""SlotBanks: the slots of all fast tiers of a plan, numbered through: those of fast0 first.

Each tier has its own device and format. It does not know what lies in which slot. Floor 2.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch

from moelab.engine.fast_tier.slot_memory import SlotMemory


class SlotBanks:
    """`memories` of fast0, fast1, ...; slots [first[f], first[f + 1]) are those of tier f."""

    def __init__(self, memories: Sequence[SlotMemory]) -> None:
        self.memories = list(memories)
        self.first = [0]
        for memory in memories:
            self.first.append(self.first[-1] + memory.num_slots)

    def tier_of(self, slot: int) -> int:
        return bisect_right(self.first, slot) - 1

    def place(self, slot: int) -> tuple[SlotMemory, int]:
        """The memory of a slot, and its number there."""
        tier = self.tier_of(slot)
        return self.memories[tier], slot - self.first[tier]

    @property
    def num_slots(self) -> int:
        return self.first[-1]

    @property
    def num_slots_of_tier(self) -> list[int]:
        return [memory.num_slots for memory in self.memories]

    @property
    def num_bytes(self) -> int:
        """Device memory of all slots."""
        return sum(memory.num_bytes for memory in self.memories)

    @property
    def weight_format(self) -> str:
        """Of the tiers, in their order, each once."""
        return ", ".join(dict.fromkeys(memory.layout.weight_format for memory in self.memories))

    @property
    def devices(self) -> list[torch.device]:
        return [memory.device for memory in self.memories]


def device_of_tier(tier: int, first: torch.device) -> torch.device:
    """fast0 is on `first`; each further tier on the next GPU where there is one, else beside it."""
    if first.type != "cuda" or tier == 0:
        return first
    number = (first.index or 0) + tier
    return torch.device("cuda", number) if number < torch.cuda.device_count() else first
