"""Divider: what of a layer-step lies in slots and can be computed there, and what runs from home.

One compiled function: a dozen small NumPy calls took most of a tier's share of a step (docs/log.md, 2026-11-26,
dividing a layer-step of the live tier). It reads the slot table and the tickets of the copies as they are; it changes
neither. It does not know policies or devices. Floor 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import types

from moelab.compiled_on_use import on_use
from moelab.domain.trace import NO_EXPERT
from moelab.engine.fast_tier.copy_thread import CopyThread

NUM_HELD, NUM_LATE, NUM_SERVED, NUM_ROUTED_HITS, NUM_ROUTINGS = range(5)
"""Places in `numbers`."""


@dataclass(slots=True)
class Divided:
    """`experts` in rising order, in `slots`, are computed there; `home_ids` int32 [T, K] is the rest (`NO_EXPERT` where
    a slot serves). `num_held` distinct experts had a slot, `num_late` of them without their copy."""

    experts: list[int]
    slots: list[int]
    home_ids: np.ndarray
    num_held: int
    num_late: int
    num_routed_hits: int
    num_routings: int
    late_slots: list[int]  # of those that run from home because their copy has not arrived


class Divider:
    """Buffers for one caller at a time."""

    def __init__(self, num_experts: int) -> None:
        self._state_of_expert, self._late_slots = np.zeros((2, num_experts), np.int64)
        self._served, self._numbers = np.zeros((2, num_experts), np.int64), np.zeros(5, np.int64)

    def divide(
        self, used: np.ndarray, slot_of_expert: np.ndarray, copies: CopyThread, expert_ids: np.ndarray, *, wait: bool
    ) -> Divided:
        """`used` int32 [M] are the distinct experts of `expert_ids` [T, K], `slot_of_expert` int32 [E] of their layer.

        `wait`: for copies that are late, so that all that have a slot are served.
        """
        ids = np.ascontiguousarray(expert_ids, np.int32)
        home_ids, numbers = np.empty_like(ids), self._numbers
        arguments = (
            used, slot_of_expert, copies.asked, copies.arrived, ids, self._state_of_expert, home_ids, self._served,
            self._late_slots, numbers,
        )  # fmt: skip
        _divide(*arguments)
        num_late = int(numbers[NUM_LATE])
        late_slots = self._late_slots[:num_late].tolist()
        if num_late and wait:
            for slot in late_slots:
                copies.wait(slot)
            _divide(*arguments)
            late_slots = []
        num_held, _, num_served, num_routed_hits, num_routings = numbers.tolist()
        experts, slots = self._served[:, :num_served].tolist()
        return Divided(experts, slots, home_ids, num_held, num_late, num_routed_hits, num_routings, late_slots)


_i32, _i64 = types.int32, types.int64
_signature = types.void(
    types.Array(_i32, 1, "C", readonly=True),  # used [M], distinct
    types.Array(_i32, 1, "C", readonly=True),  # slot of expert [E], NOWHERE below 0
    types.Array(_i64, 1, "C", readonly=True),  # asked [S]
    types.Array(_i64, 1, "C", readonly=True),  # arrived [S]
    types.Array(_i32, 2, "C", readonly=True),  # expert ids [T, K]
    _i64[::1],  # state of expert [E], all 0
    _i32[:, ::1],  # home ids [T, K], out
    _i64[:, ::1],  # served [2, E]: experts in rising order and their slots, out
    _i64[::1],  # late [E]: slots of hits whose copy has not arrived, out
    _i64[::1],  # numbers [5], out
)

_HELD, _SERVED = 1, 2


# The interpreter's lock is kept: the copy thread writes tickets under it.
@on_use(_signature, nogil=False, _nrt=False)
def _divide(used, slot_of_expert, asked, arrived, expert_ids, state, home_ids, served, late, numbers):
    """An expert whose slot has not the copy that was asked for last is late: it runs from home."""
    num_held, num_late = 0, 0
    for expert in used:
        slot = slot_of_expert[expert]
        if slot < 0:
            continue
        num_held += 1
        if arrived[slot] == asked[slot]:
            state[expert] = _SERVED
        else:
            state[expert] = _HELD
            late[num_late] = slot
            num_late += 1
    num_served = 0
    for expert in range(len(state)):
        if state[expert] == _SERVED:
            served[0, num_served] = expert
            served[1, num_served] = slot_of_expert[expert]
            num_served += 1
    routed_hits, routings = 0, 0
    for token in range(expert_ids.shape[0]):
        for rank in range(expert_ids.shape[1]):
            expert = expert_ids[token, rank]
            home_ids[token, rank] = expert
            if expert == NO_EXPERT:
                continue
            routings += 1
            if state[expert] > 0:
                routed_hits += 1
                if state[expert] == _SERVED:
                    home_ids[token, rank] = NO_EXPERT
    for expert in used:
        state[expert] = 0
    numbers[NUM_HELD] = num_held
    numbers[NUM_LATE] = num_late
    numbers[NUM_SERVED] = num_served
    numbers[NUM_ROUTED_HITS] = routed_hits
    numbers[NUM_ROUTINGS] = routings
