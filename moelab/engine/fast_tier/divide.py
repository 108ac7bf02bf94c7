"""divide: what of a layer-step lies in slots and can be computed there, and what runs from home.

One compiled function: a dozen small NumPy calls took most of a tier's share of a step (docs/log.md). It reads the slot
table and the tickets of the copies as they are; it changes neither. Floor 2.
"""

from __future__ import annotations

from numba import njit, types

from moelab.domain.trace import NO_EXPERT
from moelab.policies.compiled import OPTIONS
from moelab.source_stamp import stamped

NUM_HELD, NUM_LATE, NUM_SERVED, NUM_ROUTED_HITS, NUM_ROUTINGS = range(5)
"""Places in `numbers`."""

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
@njit(_signature, **OPTIONS)
@stamped
def divide(used, slot_of_expert, asked, arrived, expert_ids, state, home_ids, served, late, numbers):
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
