"""min_bypass: the oracle. Keep what is used soonest; admit a miss only if it returns before the farthest resident.

Reference: MIN (Belady 1966), with bypass as in Mattson et al. 1970, section on optimal replacement
(the current key competes for a slot). Where we differ: requests are sets, and what the request uses is
pinned: it competes again from the next request of its pool on. Among the misses the one that returns
soonest is served first; what never returns is never admitted, even into free room, since that would
only cost a read. Largest number of distinct hits for equal sizes (tested against brute force); with
unequal bytes or an upload budget it is a good heuristic, not a bound.

Needs ``next_use``. Fast tier 0 only. Ties: equal next uses are evicted higher (layer, expert) first
and admitted in order of appearance. State: one indexed binary max-heap per pool in ``int_state``, over
(next use, key): ``heap`` [L * E] of keys (pool p owns its stretch), ``place`` [L * E] of a key in the heap
or -1 (-2 pinned by the plan), ``returns`` [L * E] next use of a key, ``size`` [P]. O((M + evictions) log E)
per request. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled, inlined
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.signature import ADMIT, EVICT, IN_USE, NEVER, pool_of

NOT_IN_HEAP = -1
PINNED = -2


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """Heaps of the initial residents of tier 0 that the plan did not pin; needs ``first_use``."""
    num_keys = setup.num_layers * setup.num_experts
    state = np.zeros(3 * num_keys + setup.num_pools, np.int64)
    place = state[num_keys : 2 * num_keys]
    place[:] = NOT_IN_HEAP
    place[np.flatnonzero(setup.pinned)] = PINNED
    if setup.first_use is None:
        raise ValueError("policy min_bypass is an oracle and needs the future: simulate a recorded trace with it")
    stretch = num_keys // setup.num_pools
    for layer, expert in np.argwhere((setup.resident == 1) & ~setup.pinned):
        key = int(layer * setup.num_experts + expert)
        pool = int(layer) if setup.num_pools > 1 else 0
        _insert(state, num_keys, pool, stretch, key, int(setup.first_use[layer, expert]))
    return np.zeros(0, np.float64), state


@inlined
def _farther(state, num_keys, a, b):
    """Is key a to be evicted before key b?"""
    return_a, return_b = state[at(2 * num_keys + a)], state[at(2 * num_keys + b)]
    return return_a > return_b or (return_a == return_b and a > b)


@compiled
def _rise(state, num_keys, start, i):
    key = state[at(start + i)]
    while i > 0:
        parent = (i - 1) // 2
        above = state[at(start + parent)]
        if not _farther(state, num_keys, key, above):
            break
        state[at(start + i)] = above
        state[at(num_keys + above)] = i
        i = parent
    state[at(start + i)] = key
    state[at(num_keys + key)] = i


@compiled
def _sink(state, num_keys, start, size, i):
    key = state[at(start + i)]
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _farther(state, num_keys, state[at(start + child + 1)], state[at(start + child)]):
            child += 1
        below = state[at(start + child)]
        if not _farther(state, num_keys, below, key):
            break
        state[at(start + i)] = below
        state[at(num_keys + below)] = i
        i = child
    state[at(start + i)] = key
    state[at(num_keys + key)] = i


@compiled
def _insert(state, num_keys, pool, stretch, key, returns):
    start, size = pool * stretch, state[at(3 * num_keys + pool)]
    state[at(2 * num_keys + key)] = returns
    state[at(start + size)] = key
    state[at(3 * num_keys + pool)] = size + 1
    _rise(state, num_keys, start, size)


@compiled
def _remove(state, num_keys, pool, stretch, key):
    start, last = pool * stretch, state[at(3 * num_keys + pool)] - 1
    i = state[at(num_keys + key)]
    state[at(num_keys + key)] = NOT_IN_HEAP
    state[at(3 * num_keys + pool)] = last
    if i != last:
        moved = state[at(start + last)]
        state[at(start + i)] = moved
        state[at(num_keys + moved)] = i
        _rise(state, num_keys, start, i)
        _sink(state, num_keys, start, last, state[at(num_keys + moved)])


@compiled
def decide(view):
    """Take the used out of the heap, serve misses by soonest return, put hits and admitted back."""
    layer, experts, next_use, resident = view.layer, view.experts, view.next_use, view.resident
    free_slots, free_bytes, expert_bytes, admit, evict = (
        view.free_slots, view.free_bytes, view.expert_bytes, view.admit, view.evict
    )  # fmt: skip
    if len(free_slots) == 0:
        return
    num_layers, num_experts = resident.shape
    state, num_keys = view.int_state, num_layers * num_experts
    pool = pool_of(layer, free_slots)
    stretch = num_keys // free_slots.shape[1]
    start = pool * stretch
    bytes_each = expert_bytes[1, layer]
    slots, room = free_slots[0, pool], free_bytes[0, pool]
    for expert in experts:
        key = layer * num_experts + expert
        if resident[at(layer), expert] == IN_USE | 1 and state[at(num_keys + key)] >= 0:
            _remove(state, num_keys, pool, stretch, key)
    num_admit = 0
    num_evict = 0
    last_return, last_index = -1, -1
    while num_admit < view.upload_budget:
        best = -1  # the miss that returns soonest after (last_return, last_index)
        for i in range(len(experts)):
            if resident[at(layer), experts[at(i)]] != IN_USE or next_use[at(i)] == NEVER:
                continue
            if next_use[at(i)] < last_return or (next_use[at(i)] == last_return and i <= last_index):
                continue
            if best < 0 or next_use[at(i)] < next_use[at(best)]:
                best = i
        if best < 0:
            break
        last_return, last_index = next_use[at(best)], best
        while slots < 1 or room < bytes_each:
            if state[at(3 * num_keys + pool)] == 0 or state[at(2 * num_keys + state[at(start)])] <= last_return:
                break
            farthest = state[at(start)]
            _remove(state, num_keys, pool, stretch, farthest)
            of_layer = farthest // num_experts
            evict[num_evict, 0] = of_layer
            evict[num_evict, 1] = farthest - of_layer * num_experts
            num_evict += 1
            slots += 1
            room += expert_bytes[1, of_layer]
        if slots < 1 or room < bytes_each:
            break
        admit[num_admit, 0] = experts[at(best)]
        admit[num_admit, 1] = 0
        num_admit += 1
        slots -= 1
        room -= bytes_each
    for i in range(len(experts)):
        key = layer * num_experts + experts[at(i)]
        if resident[at(layer), experts[at(i)]] == IN_USE | 1 and state[at(num_keys + key)] == NOT_IN_HEAP:
            _insert(state, num_keys, pool, stretch, key, next_use[at(i)])
    for j in range(num_admit):
        for i in range(len(experts)):
            if experts[at(i)] == admit[j, 0]:
                _insert(state, num_keys, pool, stretch, layer * num_experts + experts[at(i)], next_use[at(i)])
    view.num_out[ADMIT] = num_admit
    view.num_out[EVICT] = num_evict


POLICY = Policy(
    name="min_bypass",
    decide=decide,
    reference="Belady 1966; bypass: Mattson et al. 1970",
    parameters={},
    new_state=new_state,
    layers_are_apart=True,
    needs_next_use=True,
)
