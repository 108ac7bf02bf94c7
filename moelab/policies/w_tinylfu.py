"""w_tinylfu: a small window for newcomers; what leaves it must be used more often than whom it would replace.

Reference: Einziger, Friedman and Manes 2017 (W-TinyLFU): window LRU, main area segmented into probation and
protected; counts of recent uses decide between the window's oldest and the main area's oldest; they are halved
every ``sample`` x capacity uses. Where we differ: experts are few, so counts are exact instead of a sketch (and
not capped at 15). A request is a set: all its experts count first, then hits move in order of last appearance,
then each miss is served. What it uses is no victim: then the next oldest stands for it, or nobody contests.
What the window holds beyond its share goes to probation uncontested. Fast tier 0 only; per layer or global,
slots or bytes, with or without ``overflow``. State: ``segments`` window, probation, protected; counts [L * E];
uses since the last halving [P]; initial residents in the window. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.room import answer, note_eviction, num_wanted
from moelab.policies.segments import capacity_of, move, new_segments, num_words, oldest, segment_of, size_of, unit_of
from moelab.policies.signature import FLAG_OVERFLOW, pool_of

WINDOW, PROBATION, PROTECTED = 1, 2, 3
_LISTS = 3


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """All initial residents in the window, nothing counted."""
    for name in ("window", "protected"):
        if not 0 <= setup.parameters[name] <= 1:
            raise ValueError(f"{name} is {setup.parameters[name]}, expected a share from 0 to 1")
    num_keys = setup.num_layers * setup.num_experts
    return np.zeros(0, np.float64), new_segments(setup, _LISTS, num_ints=num_keys + setup.num_pools)


@compiled
def _count(view, counts, node):
    """One use; after ``sample`` x capacity of them all counts of the pool are halved."""
    num_keys, num_pools = view.resident.size, view.free_slots.shape[1]
    pool, stretch = pool_of(view.layer, view.free_slots), num_keys // num_pools
    counts[at(node)] += 1
    counts[at(num_keys + pool)] += 1
    num_held = capacity_of(view, _LISTS) // unit_of(view, _LISTS, node)
    if counts[at(num_keys + pool)] >= view.int_parameters[0] * max(1, num_held):
        for each in range(pool * stretch, (pool + 1) * stretch):
            counts[at(each)] //= 2
        counts[at(num_keys + pool)] //= 2


@compiled
def _evict_one(view, counts, is_window_full):
    """The loser between the window's oldest and main's oldest; -1 if everybody is in use."""
    of_main = oldest(view, _LISTS, PROBATION, False)
    if of_main < 0:
        of_main = oldest(view, _LISTS, PROTECTED, False)
    candidate = oldest(view, _LISTS, WINDOW, False) if is_window_full or of_main < 0 else -1
    victim = candidate if of_main < 0 else of_main
    if candidate >= 0 and of_main >= 0:
        if counts[at(candidate)] > counts[at(of_main)]:
            move(view, _LISTS, candidate, PROBATION)
        else:
            victim = candidate
    if victim >= 0:
        move(view, _LISTS, victim, 0)
    return victim


@compiled
def decide(view):
    """Count, move the hits, let each miss into the window."""
    if len(view.free_slots) == 0:
        return
    num_keys, num_pools = view.resident.size, view.free_slots.shape[1]
    pool, first = pool_of(view.layer, view.free_slots), view.layer * view.resident.shape[1]
    overflow = view.flags & FLAG_OVERFLOW
    counts = view.int_state[num_words(num_keys, num_pools, _LISTS) :]
    capacity = capacity_of(view, _LISTS)
    window_limit = max(1, np.int64(capacity * view.float_parameters[0]))
    protected_limit = np.int64((capacity - window_limit) * view.float_parameters[1])
    for expert in view.experts:
        _count(view, counts, first + expert)
    for i in view.hits:
        node = first + view.experts[i]
        where = segment_of(view, _LISTS, node)
        if where > 0:
            move(view, _LISTS, node, WINDOW if where == WINDOW else PROTECTED)
            while size_of(view, _LISTS, PROTECTED) > max(0, protected_limit):
                move(view, _LISTS, oldest(view, _LISTS, PROTECTED, True), PROBATION)
    slots, room, bytes_each = view.free_slots[0, pool], view.free_bytes[0, pool], view.expert_bytes[1, view.layer]
    num_admit = 0
    num_evict = 0
    for j in range(num_wanted(view) + (overflow > 0)):
        is_last = j == num_wanted(view)  # only with overflow: back to the capacity
        node = first if is_last else first + view.experts[view.misses[j]]
        unit = unit_of(view, _LISTS, node)
        while slots < 1 - is_last or room < (0 if is_last else bytes_each):
            victim = _evict_one(view, counts, not is_last and size_of(view, _LISTS, WINDOW) + unit > window_limit)
            if victim < 0:
                break
            room += note_eviction(view, num_evict, victim)
            num_evict += 1
            slots += 1
        if is_last or (not overflow and (slots < 1 or room < bytes_each)):
            break
        move(view, _LISTS, node, WINDOW)
        while size_of(view, _LISTS, WINDOW) > window_limit:
            move(view, _LISTS, oldest(view, _LISTS, WINDOW, True), PROBATION)
        num_admit += 1
        slots -= 1
        room -= bytes_each
    answer(view, num_admit, num_evict)


POLICY = Policy(
    name="w_tinylfu",
    decide=decide,
    reference="Einziger, Friedman and Manes 2017",
    parameters={"window": 0.01, "protected": 0.8, "sample": 10},
    new_state=new_state,
    layers_are_apart=True,
)
