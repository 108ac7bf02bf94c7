"""reuse: set-request reuse (stack) distances, per layer, every use in one pass.  Floor 2.

The distance of a use is the number of distinct experts of the same layer that are more recent than it
when its request arrives; -1 at the first use. All experts of a set are measured before any of them is
moved up, so siblings of the current set do not count against each other; then they move up in order
of last appearance (the policy ``lru`` keeps the same order). An LRU of C slots hits exactly
where the distance is below C (Mattson et al. 1970; set form: facts/algorithms.md section 5).

How: each layer owns W slots in time order, one bit per slot where its latest use lies. The distance is the
number of bits after an expert's own: a Fenwick tree over 64-bit words, and a population count in its
word. When the slots are used up, the at most E live ones are moved together. O(log(W / 64)) per use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import njit, types

from moelab.compiled_on_use import on_use
from moelab.domain.trace import Trace
from moelab.policies.requests import Requests
from moelab.source_stamp import stamped

if TYPE_CHECKING:
    import pandas as pd

FIRST_USE = -1
"""Distance of a use that has no earlier one."""


@dataclass(frozen=True, eq=False)
class ReuseDistances:
    """Distances of every use, aligned with ``requests.experts`` (int32 [N], ``FIRST_USE`` where new)."""

    model: str
    synthetic: bool
    requests: Requests
    distances: np.ndarray

    def histogram(self, phase: str | None = None) -> np.ndarray:
        """int64 [L, E]: distinct uses by layer and distance (first uses left out), of one phase or of all."""
        layer, counted = self._layer_and_phase(phase)
        counted &= self.distances != FIRST_USE
        flat = layer[counted] * self.requests.num_experts + self.distances[counted]
        shape = (self.requests.num_layers, self.requests.num_experts)
        return np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)

    def _layer_and_phase(self, phase: str | None) -> tuple[np.ndarray, np.ndarray]:
        clock = np.repeat(np.arange(self.requests.num_requests), np.diff(self.requests.offsets))
        step, layer = np.divmod(clock, self.requests.num_layers)
        return layer, self.requests.steps_of_phase(phase)[step]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: uses, first uses, and quartiles of the distances."""
        import pandas as pd

        layer, _ = self._layer_and_phase(None)
        rows = []
        for index in range(self.requests.num_layers):
            mine = self.distances[layer == index]
            again = mine[mine != FIRST_USE]
            quartiles = np.quantile(again, (0.25, 0.5, 0.75)) if len(again) else (np.nan,) * 3
            rows.append(
                {
                    "routing": "synthetic" if self.synthetic else "recorded",
                    "layer": index,
                    "uses": len(mine),
                    "first_uses": len(mine) - len(again),
                    "distance_p25": quartiles[0],
                    "distance_p50": quartiles[1],
                    "distance_p75": quartiles[2],
                }
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"ReuseDistances of {self.model}\n" + self.to_frame().to_string(index=False)

    def _repr_html_(self) -> str:
        return "<b>ReuseDistances</b>" + self.to_frame().to_html(index=False, float_format="%.1f")


def reuse_distances(trace: Trace, *, requests: Requests | None = None) -> ReuseDistances:
    """Set-request reuse distances of a trace; ``requests`` where they were built before."""
    requests = requests if requests is not None else Requests.of_trace(trace)
    distances = np.empty(len(requests.experts), np.int32)
    _measure(requests.offsets, requests.experts, requests.num_layers, requests.num_experts, distances)
    return ReuseDistances(trace.header.model, trace.header.synthetic, requests, distances)


@on_use(types.int64(types.uint64))
def _ones(word):
    """Number of set bits."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return types.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True)
@stamped
def _add(tree, layer, word, amount):
    i = word + 1
    while i < tree.shape[1]:
        tree[layer, i] += amount
        i += i & -i


@njit(cache=True)
@stamped
def _pack(layer, words, tree, slot_of, expert_of):
    """Move the live slots of a layer together, in order; return their number."""
    live = 0
    for slot in range(expert_of.shape[1]):
        if words[layer, slot >> 6] >> np.uint64(slot & 63) & np.uint64(1):
            expert = expert_of[layer, slot]
            expert_of[layer, live] = expert
            slot_of[layer, expert] = live
            live += 1
    words[layer, :] = 0
    tree[layer, :] = 0
    for slot in range(live):
        words[layer, slot >> 6] |= np.uint64(1) << np.uint64(slot & 63)
        _add(tree, layer, slot >> 6, 1)
    return live


@on_use(types.void(types.int64[::1], types.int32[::1], types.int64, types.int64, types.int32[::1]))
def _measure(offsets, experts, num_layers, num_experts, distances):
    """Fill ``distances``; one pass over all requests."""
    num_words = (4 * num_experts + 63) // 64 + 1
    words = np.zeros((num_layers, num_words), np.uint64)
    tree = np.zeros((num_layers, num_words + 1), np.int32)
    slot_of = np.full((num_layers, num_experts), -1, np.int32)
    expert_of = np.zeros((num_layers, num_words * 64), np.int32)
    next_slot = np.zeros(num_layers, np.int64)
    num_seen = np.zeros(num_layers, np.int64)
    for request in range(len(offsets) - 1):
        layer = request % num_layers
        begin, end = offsets[request], offsets[request + 1]
        for i in range(begin, end):
            slot = slot_of[layer, experts[i]]
            if slot < 0:
                distances[i] = FIRST_USE
                continue
            word = slot >> 6
            not_after = _ones(words[layer, word] << np.uint64(63 - (slot & 63)))
            j = word
            while j > 0:
                not_after += tree[layer, j]
                j -= j & -j
            distances[i] = num_seen[layer] - not_after
        if next_slot[layer] + end - begin > num_words * 64:
            next_slot[layer] = _pack(layer, words, tree, slot_of, expert_of)
        for i in range(begin, end):
            expert = experts[i]
            slot = slot_of[layer, expert]
            if slot < 0:
                num_seen[layer] += 1
            else:
                words[layer, slot >> 6] &= ~(np.uint64(1) << np.uint64(slot & 63))
                _add(tree, layer, slot >> 6, -1)
            slot = next_slot[layer]
            next_slot[layer] += 1
            words[layer, slot >> 6] |= np.uint64(1) << np.uint64(slot & 63)
            _add(tree, layer, slot >> 6, 1)
            slot_of[layer, expert] = slot
            expert_of[layer, slot] = expert
