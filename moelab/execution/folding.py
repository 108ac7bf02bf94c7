"""Folding: how many layers and experts of a trace fit in memory, and where the others go.

Knows that a step must go on reading as many distinct experts as it routed to. Layers beyond those
that fit are left out; only if one whole layer does not fit are its experts folded. Floor 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.domain.trace import NO_EXPERT


@dataclass(frozen=True)
class Folding:
    """``layers`` of the trace that run, with ``num_experts`` experts each; ``text`` says it."""

    num_layers: int
    num_experts: int
    text: str

    def cut(self, num_layers: int) -> Folding:
        """The same with fewer layers, because no more could be made ready in time."""
        if num_layers == self.num_layers:
            return self
        text = f"the first {num_layers} of {self.num_layers} layers that fit run: more were not ready in time"
        return Folding(num_layers, self.num_experts, text)

    def fold(self, expert_ids: np.ndarray) -> np.ndarray:
        """Ids of one layer-step [T, K] within ``num_experts``, distinct ones kept distinct.

        Expert e goes to e mod ``num_experts``; where two distinct experts of the step meet, the later
        one takes the next free place.
        """
        routed = expert_ids != NO_EXPERT
        distinct = np.unique(expert_ids[routed])
        if not distinct.size or int(distinct[-1]) < self.num_experts:
            return expert_ids
        place_of_expert: dict[int, int] = {}
        taken: set[int] = set()
        for expert in distinct.tolist():
            place = expert % self.num_experts
            while place in taken and len(taken) < self.num_experts:
                place = (place + 1) % self.num_experts
            taken.add(place)
            place_of_expert[expert] = place
        folded = np.full_like(expert_ids, NO_EXPERT)
        folded[routed] = [place_of_expert[e] for e in expert_ids[routed].tolist()]
        return folded


def fold_to_memory(
    num_layers: int, num_experts: int, expert_bytes: int, memory_bytes: int, cache_bytes: int, min_experts: int
) -> Folding:
    """The largest part of ``num_layers`` x ``num_experts`` within ``memory_bytes``.

    Raises ``MemoryError`` where not even 8 times the last-level cache (``cache_bytes``) or
    ``min_experts`` experts of one layer fit, and ``ValueError`` where the whole trace at this expert shape
    is smaller: the figures would be those of a cache.
    """
    layer_bytes = num_experts * expert_bytes
    smallest = max(8 * cache_bytes, min_experts * expert_bytes)
    fits = memory_bytes // expert_bytes
    if num_layers * layer_bytes < 8 * cache_bytes:
        raise ValueError(
            f"all experts at this shape are {num_layers * layer_bytes / 1e9:.2f} GB, expected at least "
            f"{8 * cache_bytes / 1e9:.2f} GB (8 times the last-level cache): choose a larger --expert-shape"
        )
    if fits * expert_bytes < smallest or fits < min_experts:
        raise MemoryError(
            f"half of the free memory is {memory_bytes / 1e9:.2f} GB, expected at least {smallest / 1e9:.2f} GB "
            "(8 times the last-level cache): free memory or choose a smaller --expert-shape"
        )
    layers = min(num_layers, memory_bytes // layer_bytes)
    if layers == num_layers:
        return Folding(num_layers, num_experts, "none: every layer and expert of the trace has its own weights")
    if layers >= 1:
        return Folding(
            int(layers), num_experts, f"the first {layers} of {num_layers} layers run, {num_experts} experts each"
        )
    return Folding(
        1, int(fits), f"1 of {num_layers} layers, {num_experts} experts folded onto {fits}, distinct ones kept distinct"
    )
