"""score_heap: evictable residents by score, lowest first, and serving misses from it, with or without admission.  Floor 1.

For policies that say how much an expert is worth (``lfu``, ``ema_lfu``, ``lfru``, ``mrs``, ``gdsf``, ``eam``): they
set ``float_state[node]``, call ``moved`` where the order may have changed, and let ``serve`` do the rest.

Serving: misses by falling score, ties in order of last appearance, evict the lowest until they fit; ties of victims: the
one whose last use is older. ADMIT(h, U): a miss comes in only if its score is above (1 + h) times that of every
victim it needs, at most U for each request; h = -1 is fill on demand. A miss that does not fit or is not worth it
ends the request, and whom it would have evicted stays. What the request uses is never a victim.

``int_state``: ``heap`` [L * E] of nodes (pool p owns its stretch), ``place`` [L * E] in the heap or -1, ``last``
[L * E] number of the last use, ``size`` [P], number of uses so far [1]; then the policy's own.
``float_state``: scores [L * E], then the policy's own.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import compiled, inlined
from moelab.policies.policy import PolicySetup
from moelab.policies.room import initial_nodes, is_in_use, note_eviction
from moelab.policies.signature import ADMIT, EVICT, FLAG_OVERFLOW, UNLIMITED, pool_of

ADMISSION: dict[str, float | int] = {"hysteresis": -1.0, "max_uploads": UNLIMITED}
"""First parameters of every policy that serves from the heap: h and U."""


def new_heap(setup: PolicySetup, num_floats: int = 0, num_ints: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(float_state, int_state): initial residents with score 0, used in ascending (layer, expert)."""
    num_keys, num_pools = setup.num_layers * setup.num_experts, setup.num_pools
    state = np.zeros(num_int_words(num_keys, num_pools) + num_ints, np.int64)
    place, last = state[num_keys : 2 * num_keys], state[2 * num_keys : 3 * num_keys]
    size = state[3 * num_keys : 3 * num_keys + num_pools]
    place[:] = -1
    for number, (pool, node) in enumerate(initial_nodes(setup)):
        state[pool * (num_keys // num_pools) + size[pool]] = node
        place[node] = size[pool]
        size[pool] += 1
        last[node] = number + 1
    state[3 * num_keys + num_pools] = len(initial_nodes(setup)) + 1
    return np.zeros(num_keys + num_floats, np.float64), state


@inlined
def num_int_words(num_keys, num_pools):
    """Where a policy's own integers begin."""
    return 3 * num_keys + num_pools + 1


@inlined
def _goes_before(score, state, num_keys, a, b):
    """Is node a to be evicted before node b?"""
    return score[a] < score[b] or (score[a] == score[b] and state[2 * num_keys + a] < state[2 * num_keys + b])


@compiled
def _rise(score, state, num_keys, start, i):
    node = state[start + i]
    while i > 0:
        parent = (i - 1) >> 1
        above = state[start + parent]
        if not _goes_before(score, state, num_keys, node, above):
            break
        state[start + i] = above
        state[num_keys + above] = i
        i = parent
    state[start + i] = node
    state[num_keys + node] = i


@compiled
def _sink(score, state, num_keys, start, size, i):
    node = state[start + i]
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size:
            child += _goes_before(score, state, num_keys, state[start + child + 1], state[start + child])
        below = state[start + child]
        if not _goes_before(score, state, num_keys, below, node):
            break
        state[start + i] = below
        state[num_keys + below] = i
        i = child
    state[start + i] = node
    state[num_keys + node] = i


@compiled
def put(score, state, num_keys, num_pools, pool, node):
    """Put a node into its pool's heap."""
    start, size = pool * (num_keys // num_pools), state[3 * num_keys + pool]
    state[start + size] = node
    state[3 * num_keys + pool] = size + 1
    _rise(score, state, num_keys, start, size)


@compiled
def _take_lowest(score, state, num_keys, num_pools, pool):
    """Take the lowest node out of a heap that is not empty."""
    start, size = pool * (num_keys // num_pools), state[3 * num_keys + pool] - 1
    node = state[start]
    state[num_keys + node] = -1
    state[3 * num_keys + pool] = size
    if size > 0:
        state[start] = state[start + size]
        _sink(score, state, num_keys, start, size, 0)
    return node


@inlined
def moved(score, state, num_keys, num_pools, pool, node):
    """The score of a node has changed: find its place, if it is in the heap."""
    i = state[num_keys + node]
    if i >= 0:
        start = pool * (num_keys // num_pools)
        _rise(score, state, num_keys, start, i)
        _sink(score, state, num_keys, start, state[3 * num_keys + pool], state[num_keys + node])


@compiled
def order_anew(score, state, num_keys, num_pools, pool):
    """All scores of a pool may have changed: order its heap from the bottom up."""
    start, size = pool * (num_keys // num_pools), state[3 * num_keys + pool]
    for i in range(size // 2 - 1, -1, -1):
        _sink(score, state, num_keys, start, size, i)


@inlined
def touch(view, node):
    """Give a node the next number of use. One node at a time: its place must be found before the next changes."""
    state, num_keys, num_pools = view.int_state, view.resident.size, view.free_slots.shape[1]
    state[2 * num_keys + node] = state[3 * num_keys + num_pools]
    state[3 * num_keys + num_pools] += 1


@compiled
def serve(view):
    """Admit misses by falling score, evict the lowest; h and U are the policy's first parameters."""
    score, state, num_keys, num_pools = view.float_state, view.int_state, view.resident.size, view.free_slots.shape[1]
    layer, experts, misses, admit, aside = view.layer, view.experts, view.misses, view.admit, view.prefetch
    pool, first, overflow = pool_of(layer, view.free_slots), layer * view.resident.shape[1], view.flags & FLAG_OVERFLOW
    hysteresis = view.float_parameters[0]
    slots, room, bytes_each = view.free_slots[0, pool], view.free_bytes[0, pool], view.expert_bytes[1, layer]
    for j in range(len(misses)):  # stable insertion by falling score
        expert, k = experts[misses[j]], j
        while k > 0 and score[first + admit[k - 1, 0]] < score[first + expert]:
            admit[k, 0] = admit[k - 1, 0]
            k -= 1
        admit[k, 0] = expert
    num_admit = 0
    num_evict = 0
    num_aside = 0
    for k in range(min(len(misses), view.upload_budget, view.int_parameters[0])):
        node, num_before, is_worth_it = first + admit[k, 0], num_evict, True
        while slots < 1 or room < bytes_each:
            victim = -1
            while victim < 0 and state[3 * num_keys + pool] > 0:
                victim = _take_lowest(score, state, num_keys, num_pools, pool)
                if is_in_use(view, victim):
                    aside[num_aside, 0] = victim
                    num_aside += 1
                    victim = -1
            if victim < 0:
                is_worth_it = overflow > 0
                break
            if hysteresis > -1 and score[node] <= (1 + hysteresis) * score[victim]:
                put(score, state, num_keys, num_pools, pool, victim)
                is_worth_it = False
                break
            room += note_eviction(view, num_evict, victim)
            slots += 1
            num_evict += 1
        if not is_worth_it:
            while num_evict > num_before:
                num_evict -= 1
                of_layer = np.int64(view.evict[num_evict, 0])
                spared = of_layer * view.resident.shape[1] + view.evict[num_evict, 1]
                put(score, state, num_keys, num_pools, pool, spared)
                slots -= 1
                room -= view.expert_bytes[1, of_layer]
            break
        admit[k, 1] = 0
        num_admit += 1
        slots -= 1
        room -= bytes_each
    while overflow and (slots < 0 or room < 0) and state[3 * num_keys + pool] > 0:
        victim = _take_lowest(score, state, num_keys, num_pools, pool)
        if is_in_use(view, victim):
            aside[num_aside, 0] = victim
            num_aside += 1
        else:
            room += note_eviction(view, num_evict, victim)
            slots += 1
            num_evict += 1
    for k in range(num_aside):
        put(score, state, num_keys, num_pools, pool, np.int64(aside[k, 0]))
    for k in range(num_admit):
        put(score, state, num_keys, num_pools, pool, first + admit[k, 0])
    view.num_out[ADMIT] = num_admit
    view.num_out[EVICT] = num_evict
