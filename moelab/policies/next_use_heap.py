"""next_use_heap: residents by next use, farthest first; what both forms of MIN evict from.  Floor 1.

One indexed binary max-heap per pool in ``int_state``, over (next use, key), a key being ``layer * E + expert``:
``heap`` [L * E] of keys (pool p owns its stretch), ``place`` [L * E] of a key in the heap or -1 (-2 pinned),
``returns`` [L * E] next use of a key, ``size`` [P]. Ties: equal next uses go higher (layer, expert) first. What a
request uses is out of the heap while it lasts. Does not know who is admitted.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled, inlined
from moelab.policies.policy import PolicySetup
from moelab.policies.signature import IN_USE

NOT_IN_HEAP = -1
PINNED = -2


def new_next_use_heap(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """Heaps of the initial residents of tier 0 that the plan did not pin; needs ``first_use``."""
    num_keys = setup.num_layers * setup.num_experts
    state = np.zeros(3 * num_keys + setup.num_pools, np.int64)
    place = state[num_keys : 2 * num_keys]
    place[:] = NOT_IN_HEAP
    place[np.flatnonzero(setup.pinned)] = PINNED
    if setup.first_use is None:
        raise ValueError("MIN is an oracle and needs the future: simulate a recorded trace with it")
    stretch = num_keys // setup.num_pools
    for layer, expert in np.argwhere((setup.resident == 1) & ~setup.pinned):
        key = int(layer * setup.num_experts + expert)
        pool = int(layer) if setup.num_pools > 1 else 0
        insert(state, num_keys, pool, stretch, key, int(setup.first_use[layer, expert]))
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
def insert(state, num_keys, pool, stretch, key, returns):
    start, size = pool * stretch, state[at(3 * num_keys + pool)]
    state[at(2 * num_keys + key)] = returns
    state[at(start + size)] = key
    state[at(3 * num_keys + pool)] = size + 1
    _rise(state, num_keys, start, size)


@compiled
def remove(state, num_keys, pool, stretch, key):
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
def take_used(view, pool, stretch):
    """Take the hits out of the heap: they are pinned."""
    num_experts, state = view.resident.shape[1], view.int_state
    for expert in view.experts:
        key = view.layer * num_experts + expert
        if view.resident[at(view.layer), at(expert)] == IN_USE | 1 and state[at(view.resident.size + key)] >= 0:
            remove(state, view.resident.size, pool, stretch, key)


@compiled
def put_used(view, pool, stretch, num_admit):
    """Put hits and admitted back, each with its next use."""
    num_experts, state, num_keys = view.resident.shape[1], view.int_state, view.resident.size
    for i in range(len(view.experts)):
        expert = view.experts[at(i)]
        key = view.layer * num_experts + expert
        if view.resident[at(view.layer), at(expert)] == IN_USE | 1 and state[at(num_keys + key)] == NOT_IN_HEAP:
            insert(state, num_keys, pool, stretch, key, view.next_use[at(i)])
        elif view.resident[at(view.layer), at(expert)] == IN_USE:
            for j in range(num_admit):
                if view.admit[at(j), 0] == expert:
                    insert(state, num_keys, pool, stretch, key, view.next_use[at(i)])


@inlined
def next_miss(view, last_return, last_index):
    """Place of the miss that returns soonest after (last_return, last_index), -1 if there is none."""
    best = -1
    for i in range(len(view.experts)):
        if view.resident[at(view.layer), at(view.experts[at(i)])] != IN_USE:
            continue
        if view.next_use[at(i)] < last_return or (view.next_use[at(i)] == last_return and i <= last_index):
            continue
        if best < 0 or view.next_use[at(i)] < view.next_use[at(best)]:
            best = i
    return best
