"""arc: adaptive replacement: what was used once and what was used again share the room; ghosts move the border.

Reference: Megiddo and Modha 2003 (FAST), figure 4. T1 used once, T2 again, B1 and B2 ghosts of them, p the
target size of T1. Where we differ: a request is a set; hits go to T2 first, then each miss is served in order
of last appearance; what the request uses is no victim (the oldest of the list that is not in use goes, from the
other list if there is none). A miss that finds no room changes p and its ghosts but is not admitted. Sizes, p
and its steps are in units of slots or bytes. Fast tier 0 only; per layer or global, with or without
``overflow``. State: ``segments`` T1, T2, B1, B2; p [P]; initial residents in T1. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.room import answer, note_eviction, num_wanted
from moelab.policies.segments import capacity_of, move, new_segments, oldest, segment_of, size_of, unit_of
from moelab.policies.signature import FLAG_OVERFLOW, pool_of

T1, T2, B1, B2 = 1, 2, 3, 4
_LISTS = 4


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """All initial residents in T1, p = 0."""
    return np.zeros(setup.num_pools, np.float64), new_segments(setup, _LISTS)


@compiled
def _replace(view, target, is_in_b2, num_evict):
    """Evict the oldest of T1 or T2 and remember it as a ghost; return it, or -1 if everybody is in use."""
    size = size_of(view, _LISTS, T1)
    from_t1 = size > 0 and (size > target or (is_in_b2 and size == target))
    victim = oldest(view, _LISTS, T1 if from_t1 else T2, False)
    if victim < 0:
        from_t1 = not from_t1
        victim = oldest(view, _LISTS, T1 if from_t1 else T2, False)
    if victim >= 0:
        move(view, _LISTS, victim, B1 if from_t1 else B2)
        note_eviction(view, num_evict, victim)
    return victim


@compiled
def decide(view):
    """Hits to T2; for each miss move the border, trim the ghosts, replace, admit."""
    if len(view.free_slots) == 0:
        return
    pool, num_experts = pool_of(view.layer, view.free_slots), view.resident.shape[1]
    first, overflow = view.layer * num_experts, view.flags & FLAG_OVERFLOW
    for i in view.hits:
        if segment_of(view, _LISTS, first + view.experts[i]) > 0:
            move(view, _LISTS, first + view.experts[i], T2)
    slots, room, bytes_each = view.free_slots[0, pool], view.free_bytes[0, pool], view.expert_bytes[1, view.layer]
    capacity, border = capacity_of(view, _LISTS), view.float_state
    num_admit = 0
    num_evict = 0
    for j in range(num_wanted(view)):
        node = first + view.experts[view.misses[j]]
        ghost, unit = segment_of(view, _LISTS, node), unit_of(view, _LISTS, node)
        in_b1, in_b2 = size_of(view, _LISTS, B1), size_of(view, _LISTS, B2)
        is_direct = False  # the victim comes from T1 and leaves no ghost
        if ghost == B1:
            border[pool] = min(np.float64(capacity), border[pool] + max(1.0, in_b2 / in_b1) * unit)
        elif ghost == B2:
            border[pool] = max(0.0, border[pool] - max(1.0, in_b1 / in_b2) * unit)
        else:
            in_t1, in_t2 = size_of(view, _LISTS, T1), size_of(view, _LISTS, T2)
            if in_t1 + in_b1 + unit > capacity:
                if in_b1 > 0:
                    move(view, _LISTS, oldest(view, _LISTS, B1, True), 0)
                else:
                    is_direct = True
            elif in_t1 + in_t2 + in_b1 + in_b2 + unit > 2 * capacity and in_b2 > 0:
                move(view, _LISTS, oldest(view, _LISTS, B2, True), 0)
        while slots < 1 or room < bytes_each:
            victim = -1
            if is_direct:
                victim = oldest(view, _LISTS, T1, False)
                if victim >= 0:
                    move(view, _LISTS, victim, 0)
                    note_eviction(view, num_evict, victim)
            if victim < 0:
                victim = _replace(view, border[pool], ghost == B2, num_evict)
            if victim < 0:
                break
            num_evict += 1
            slots += 1
            room += view.expert_bytes[1, view.layer if view.free_slots.shape[1] > 1 else victim // num_experts]
        if not overflow and (slots < 1 or room < bytes_each):
            break
        move(view, _LISTS, node, T2 if ghost > 0 else T1)
        num_admit += 1
        slots -= 1
        room -= bytes_each
    while overflow and (slots < 0 or room < 0):
        victim = _replace(view, border[pool], False, num_evict)
        if victim < 0:
            break
        num_evict += 1
        slots += 1
        room += view.expert_bytes[1, view.layer if view.free_slots.shape[1] > 1 else victim // num_experts]
    answer(view, num_admit, num_evict)


POLICY = Policy(
    name="arc",
    decide=decide,
    reference="Megiddo and Modha 2003 (FAST)",
    parameters={},
    new_state=new_state,
    layers_are_apart=True,
)
