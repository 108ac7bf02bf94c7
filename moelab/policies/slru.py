"""slru: segmented LRU: newcomers on probation, and what is used there again is protected.

Reference: Karedla, Love and Wherry 1994. The protected segment holds at most ``protected`` of the capacity;
what it pushes out goes back to probation as the newest. Where we differ: a request is a set; hits move first,
in order of last appearance, then misses are admitted in that order. Victims: the oldest on probation, then the
oldest protected, never what the request uses. Fast tier 0 only; per layer or global, slots or bytes, with or
without ``overflow``. State: ``segments``, list 1 probation, 2 protected; initial residents on probation.
(libcachesim's SLRU has four segments and another rule, so its counts differ.) Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.room import answer, note_eviction, num_that_fit, num_wanted
from moelab.policies.segments import capacity_of, move, new_segments, oldest, segment_of, size_of
from moelab.policies.signature import pool_of

PROBATION, PROTECTED = 1, 2
_LISTS = 2


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """All initial residents on probation."""
    if not 0 <= setup.parameters["protected"] <= 1:
        raise ValueError(f"protected is {setup.parameters['protected']}, expected a share from 0 to 1")
    return np.zeros(0, np.float64), new_segments(setup, _LISTS)


@compiled
def decide(view):
    """Protect the hits, evict from probation, admit to probation."""
    if len(view.free_slots) == 0:
        return
    pool, first = pool_of(view.layer, view.free_slots), view.layer * view.resident.shape[1]
    limit = np.int64(capacity_of(view, _LISTS) * view.float_parameters[0])
    for i in view.hits:
        node = first + view.experts[i]
        if segment_of(view, _LISTS, node) == 0:
            continue
        move(view, _LISTS, node, PROTECTED)
        while size_of(view, _LISTS, PROTECTED) > limit:
            move(view, _LISTS, oldest(view, _LISTS, PROTECTED, True), PROBATION)
    slots, room = view.free_slots[0, pool], view.free_bytes[0, pool]
    wanted, bytes_each = num_wanted(view), view.expert_bytes[1, view.layer]
    num_evict = 0
    while slots < wanted or room < wanted * bytes_each:
        victim = oldest(view, _LISTS, PROBATION, False)
        if victim < 0:
            victim = oldest(view, _LISTS, PROTECTED, False)
        if victim < 0:
            break
        move(view, _LISTS, victim, 0)
        room += note_eviction(view, num_evict, victim)
        slots += 1
        num_evict += 1
    num_admit = num_that_fit(view, wanted, slots, room)
    for j in range(num_admit):
        move(view, _LISTS, first + view.experts[view.misses[j]], PROBATION)
    answer(view, num_admit, num_evict)


POLICY = Policy(
    name="slru",
    decide=decide,
    reference="Karedla, Love and Wherry 1994",
    parameters={"protected": 0.8},
    new_state=new_state,
    layers_are_apart=True,
)
