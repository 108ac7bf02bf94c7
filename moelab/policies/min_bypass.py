"""min_bypass: the oracle. Keep what is used soonest; admit a miss only if it returns before the farthest resident.

Reference: MIN (Belady 1966), with bypass as in Mattson et al. 1970, section on optimal replacement
(the current key competes for a slot). Where we differ: requests are sets, and what the request uses is
pinned: it competes again from the next request of its pool on. Among the misses the one that returns
soonest is served first; what never returns is never admitted, even into free room, since that would
only cost a read. Largest number of distinct hits for equal sizes (tested against brute force); with
unequal bytes or an upload budget it is a good heuristic, not a bound.

Needs ``next_use``. Fast tier 0 only. Ties: equal next uses are evicted higher (layer, expert) first
and admitted in order of appearance. State: ``next_use_heap``. O((M + evictions) log E) per request. Floor 1.
"""

from __future__ import annotations

from moelab.policies.compiled import at, compiled
from moelab.policies.next_use_heap import new_next_use_heap, next_miss, put_used, remove, take_used
from moelab.policies.policy import Policy
from moelab.policies.signature import ADMIT, EVICT, NEVER, pool_of


@compiled
def decide(view):
    """Take the used out of the heap, serve misses by soonest return, put hits and admitted back."""
    if len(view.free_slots) == 0:
        return
    num_experts, state, num_keys = view.resident.shape[1], view.int_state, view.resident.size
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
        if best < 0 or view.next_use[at(best)] == NEVER:
            break
        last_return, last_index = view.next_use[at(best)], best
        while slots < 1 or room < bytes_each:
            if state[at(3 * num_keys + pool)] == 0 or state[at(2 * num_keys + state[at(start)])] <= last_return:
                break
            farthest = state[at(start)]
            remove(state, num_keys, pool, stretch, farthest)
            of_layer = farthest // num_experts
            view.evict[at(num_evict), 0] = of_layer
            view.evict[at(num_evict), 1] = farthest - of_layer * num_experts
            num_evict += 1
            slots += 1
            room += view.expert_bytes[1, of_layer]
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
    name="min_bypass",
    decide=decide,
    reference="Belady 1966; bypass: Mattson et al. 1970",
    parameters={},
    new_state=new_next_use_heap,
    layers_are_apart=True,
    needs_next_use=True,
    bypasses=True,
)
