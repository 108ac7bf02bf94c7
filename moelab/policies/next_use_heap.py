"""next_use_heap: residents by next use, farthest first; what both forms of MIN evict from.  Floor 1.

One indexed binary max-heap per pool in ``int_state``, over (next use, key), a key being ``layer * E + expert``:
``heap`` [L * E] of keys (pool p owns its stretch), ``place`` [L * E] of a key in the heap or -1 (-2 pinned),
``returns`` [L * E] next use of a key, ``size`` [P]. Ties: equal next uses go higher (layer, expert) first. What a
request uses is out of the heap while it lasts. Does not know who is admitted.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import compiled, inlined
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
    return_a, return_b = state[2 * num_keys + a], state[2 * num_keys + b]
    return return_a > return_b or (return_a == return_b and a > b)


@compiled
def _rise(state, num_keys, start, i):
    key = state[start + i]
    while i > 0:
        parent = (i - 1) // 2
        above = state[start + parent]
        if not _farther(state, num_keys, key, above):
            break
        state[start + i] = above
        state[num_keys + above] = i
        i = parent
    state[start + i] = key
    state[num_keys + key] = i


@compiled
def _sink(state, num_keys, start, size, i):
    key = state[start + i]
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _farther(state, num_keys, state[start + child + 1], state[start + child]):
            child += 1
        below = state[start + child]
        if not _farther(state, num_keys, below, key):
            break
        state[start + i] = below
        state[num_keys + below] = i
        i = child
    state[start + i] = key
    state[num_keys + key] = i


@compiled
def insert(state, num_keys, pool, stretch, key, returns):
    start, size = pool * stretch, state[3 * num_keys + pool]
    state[2 * num_keys + key] = returns
    state[start + size] = key
    state[3 * num_keys + pool] = size + 1
    _rise(state, num_keys, start, size)


@compiled
def remove(state, num_keys, pool, stretch, key):
    start, last = pool * stretch, state[3 * num_keys + pool] - 1
    i = state[num_keys + key]
    state[num_keys + key] = NOT_IN_HEAP
    state[3 * num_keys + pool] = last
    if i != last:
        moved = state[start + last]
        state[start + i] = moved
        state[num_keys + moved] = i
        _rise(state, num_keys, start, i)
        _sink(state, num_keys, start, last, state[num_keys + moved])


@compiled
def take_used(view, pool, stretch):
    """Take the hits out of the heap: they are pinned."""
    num_experts, state = view.resident.shape[1], view.int_state
    for expert in view.experts:
        key = view.layer * num_experts + expert
        if view.resident[view.layer, expert] == IN_USE | 1 and state[view.resident.size + key] >= 0:
            remove(state, view.resident.size, pool, stretch, key)


@compiled
def put_used(view, pool, stretch, num_admit):
    """Put hits and admitted back, each with its next use."""
    num_experts, state, num_keys = view.resident.shape[1], view.int_state, view.resident.size
    for i in range(len(view.experts)):
        expert = view.experts[i]
        key = view.layer * num_experts + expert
        if view.resident[view.layer, expert] == IN_USE | 1 and state[num_keys + key] == NOT_IN_HEAP:
            insert(state, num_keys, pool, stretch, key, view.next_use[i])
        elif view.resident[view.layer, expert] == IN_USE:
            for j in range(num_admit):
                if view.admit[j, 0] == expert:
                    insert(state, num_keys, pool, stretch, key, view.next_use[i])


@inlined
def next_miss(view, last_return, last_index):
    """Place of the miss that returns soonest after (last_return, last_index), -1 if there is none."""
    best = -1
    for i in range(len(view.experts)):
        if view.resident[view.layer, view.experts[i]] != IN_USE:
            continue
        if view.next_use[i] < last_return or (view.next_use[i] == last_return and i <= last_index):
            continue
        if best < 0 or view.next_use[i] < view.next_use[best]:
            best = i
    return best
