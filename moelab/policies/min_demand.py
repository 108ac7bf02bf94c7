"""min_demand: the oracle of fill on demand. Every miss is admitted that room can be made for; the farthest goes.

Reference: MIN (Belady 1966). Where we differ: requests are sets, and what the request uses is pinned, so a set may
leave room for some of its misses only: those that return soonest are admitted, as many as fit. Most distinct
hits of all that admit whatever fits (tested against brute force), for equal sizes; with unequal bytes or an upload
budget a heuristic, not a bound. A policy that may leave a miss outside is bounded by ``min_bypass`` only.

Needs ``next_use``. Fast tier 0 only, without ``overflow``. Ties as in ``min_bypass``. State: ``next_use_heap``.
Floor 1.
"""

from __future__ import annotations

from moelab.policies.compiled import at, compiled
from moelab.policies.next_use_heap import new_next_use_heap, next_miss, put_used, remove, take_used
from moelab.policies.policy import Policy
from moelab.policies.room import note_eviction
from moelab.policies.signature import ADMIT, EVICT, pool_of


@compiled
def decide(view):
    """Take the used out of the heap, admit misses by soonest return while room can be made, put them back."""
    if len(view.free_slots) == 0:
        return
    state, num_keys = view.int_state, view.resident.size
    pool = pool_of(view.layer, view.free_slots)
    stretch = num_keys // view.free_slots.shape[1]
    start = pool * stretch
    bytes_each = view.expert_bytes[1, view.layer]
    slots, room = view.free_slots[0, pool], view.free_bytes[0, pool]
    take_used(view, pool, stretch)
    num_admit = 0
    num_evict = 0
    last_return, last_index = -1, -1
    while num_admit < view.upload_budget:
        best = next_miss(view, last_return, last_index)
        if best < 0:
            break
        last_return, last_index = view.next_use[at(best)], best
        while (slots < 1 or room < bytes_each) and state[at(3 * num_keys + pool)] > 0:
            farthest = state[at(start)]
            remove(state, num_keys, pool, stretch, farthest)
            room += note_eviction(view, num_evict, farthest)
            num_evict += 1
            slots += 1
        if slots < 1 or room < bytes_each:
            break
        view.admit[at(num_admit), 0] = view.experts[at(best)]
        view.admit[at(num_admit), 1] = 0
        num_admit += 1
        slots -= 1
        room -= bytes_each
    put_used(view, pool, stretch, num_admit)
    view.num_out[ADMIT] = num_admit
    view.num_out[EVICT] = num_evict


POLICY = Policy(
    name="min_demand",
    decide=decide,
    reference="Belady 1966",
    parameters={},
    new_state=new_next_use_heap,
    layers_are_apart=True,
    needs_next_use=True,
)
