"""s3_fifo: a small queue filters what is used once, a main queue gives second chances, ghosts go straight to
main.

Reference: S3-FIFO (Yang et al., SOSP 2023), in the form of the authors' libcachesim: small holds ``small`` of
the capacity, the ghosts ``ghosts``; a miss that is a ghost goes to main, any other to small (to main where
small is full before anything was ever evicted); evict from main if it is over its share or small is empty, else
from small: what was used ``promote_after`` times there moves to main instead, the others become ghosts; main
reinserts what was used, one use less (uses count to 3). Where we differ: a request is a set; hits count first,
then each miss is served in order of last appearance; what the request uses is passed over as a victim and keeps
its place. Fast tier 0 only; per layer or global, slots or bytes, with or without ``overflow``. State:
``segments`` small, main, ghosts; uses [L * E]; did the pool ever evict [P]; initial residents in small.
Single-expert streams equal libcachesim's S3FIFO. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.room import answer, note_eviction, num_wanted
from moelab.policies.segments import capacity_of, move, new_segments, num_words, oldest, segment_of, size_of, unit_of
from moelab.policies.signature import FLAG_OVERFLOW, pool_of

SMALL, MAIN, GHOSTS = 1, 2, 3
_LISTS = 3


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """All initial residents in small, unused."""
    for name in ("small", "ghosts"):
        if not 0 <= setup.parameters[name] <= 1:
            raise ValueError(f"{name} is {setup.parameters[name]}, expected a share from 0 to 1")
    num_keys = setup.num_layers * setup.num_experts
    return np.zeros(0, np.float64), new_segments(setup, _LISTS, num_ints=num_keys + setup.num_pools)


@compiled
def _evict_one(view, small_limit, ghost_limit):
    """Find a victim and take it out of its queue; -1 if everybody is in use."""
    num_keys, num_pools = view.resident.size, view.free_slots.shape[1]
    uses = view.int_state[num_words(num_keys, num_pools, _LISTS) :]
    is_in_small = False  # once it looks into small it stays there
    while True:
        from_small, from_main = oldest(view, _LISTS, SMALL, False), oldest(view, _LISTS, MAIN, False)
        if from_small < 0 and from_main < 0:
            return -1
        is_main_over = size_of(view, _LISTS, MAIN) > capacity_of(view, _LISTS) - small_limit
        is_in_small = from_small >= 0 and (is_in_small or from_main < 0 or not is_main_over)
        if is_in_small:
            if uses[at(from_small)] >= view.int_parameters[0]:
                uses[at(from_small)] = 0
                move(view, _LISTS, from_small, MAIN)
                continue
            unit = unit_of(view, _LISTS, from_small)
            if unit > ghost_limit:
                move(view, _LISTS, from_small, 0)
                return from_small
            while size_of(view, _LISTS, GHOSTS) + unit > ghost_limit:
                move(view, _LISTS, oldest(view, _LISTS, GHOSTS, True), 0)
            move(view, _LISTS, from_small, GHOSTS)
            return from_small
        if uses[at(from_main)] > 0:
            uses[at(from_main)] -= 1
            move(view, _LISTS, from_main, MAIN)
        else:
            move(view, _LISTS, from_main, 0)
            return from_main


@compiled
def decide(view):
    """Count hits; for each miss make room and choose its queue."""
    if len(view.free_slots) == 0:
        return
    num_keys, num_pools, num_experts = view.resident.size, view.free_slots.shape[1], view.resident.shape[1]
    pool, first, overflow = pool_of(view.layer, view.free_slots), view.layer * num_experts, view.flags & FLAG_OVERFLOW
    uses = view.int_state[num_words(num_keys, num_pools, _LISTS) :]
    capacity = capacity_of(view, _LISTS)
    small_limit = np.int64(capacity * view.float_parameters[0])
    ghost_limit = np.int64(capacity * view.float_parameters[1])
    for i in view.hits:
        uses[at(first + view.experts[i])] = min(3, uses[at(first + view.experts[i])] + 1)
    slots, room, bytes_each = view.free_slots[0, pool], view.free_bytes[0, pool], view.expert_bytes[1, view.layer]
    num_admit = 0
    num_evict = 0
    for j in range(num_wanted(view) + (overflow > 0)):
        is_last = j == num_wanted(view)  # only with overflow: back to the capacity
        node = -1 if is_last else first + view.experts[view.misses[j]]
        was_ghost = not is_last and segment_of(view, _LISTS, node) == GHOSTS
        if was_ghost:
            move(view, _LISTS, node, 0)
        while slots < 1 - is_last or room < (0 if is_last else bytes_each):
            victim = _evict_one(view, small_limit, ghost_limit)
            if victim < 0:
                break
            room += note_eviction(view, num_evict, victim)
            num_evict += 1
            slots += 1
            uses[at(num_keys + pool)] = 1
        if is_last or (not overflow and (slots < 1 or room < bytes_each)):
            break
        is_small_full = uses[at(num_keys + pool)] == 0 and size_of(view, _LISTS, SMALL) >= small_limit
        uses[at(node)] = 0
        move(view, _LISTS, node, MAIN if was_ghost or is_small_full else SMALL)
        num_admit += 1
        slots -= 1
        room -= bytes_each
    answer(view, num_admit, num_evict)


POLICY = Policy(
    name="s3_fifo",
    decide=decide,
    reference="Yang et al. 2023 (SOSP)",
    parameters={"small": 0.1, "ghosts": 0.9, "promote_after": 2},
    new_state=new_state,
    layers_are_apart=True,
)
