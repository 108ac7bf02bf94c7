"""score_heap: evictable residents by score, lowest first; serving misses from it, with admission.  Floor 1.

For policies that say how much an expert is worth (``lfu``, ``ema_lfu``, ``lfru``, ``mrs``, ``gdsf``):
they set ``float_state[node]`` and let ``serve`` do the rest. Between evictions worths only grow, so the heap is
lazy: an entry keeps the worth it was put in with, a lower bound, and is weighed anew only when it comes to the
top; a hit costs nothing. Where a worth can fall, the policy calls ``lowered``; where all change, ``weigh_anew``.
Where all change with every request, the policy writes them by place (they lie side by side, its nodes do not) and
``select_lowest`` finds as many victims as the request can need in one pass; the pool is then no heap, and a
victim beyond those (after one was put back, or where layers have other sizes) is found by a scan.

Serving: misses by falling score, ties in order of last appearance, evict the lowest until they fit; ties of
victims: the one whose last use is older. ADMIT(h, U): a miss comes in only if its score is above (1 + h) times
that of every victim it needs, at most U for each request; h = -1 is fill on demand. A miss that does not fit or
is not worth it ends the request, and whom it would have evicted stays. What the request uses is never a victim.

``int_state``: ``heap`` [L * E] of nodes (pool p owns its stretch), ``place`` [L * E] in the heap or -1,
``last`` [L * E] number of the last use, the same as the entry knows it [L * E] (by place), ``size`` [P], number
of uses so far [1]; then the policy's own. ``float_state``: worths [L * E], the same as the entry knows it [L *
E] (by place); then the policy's own (``num_float_words``, ``num_int_words``).
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled, inlined
from moelab.policies.policy import PolicySetup
from moelab.policies.room import initial_nodes, is_in_use, note_eviction
from moelab.policies.signature import ADMIT, EVICT, FLAG_OVERFLOW, NEVER, UNLIMITED, pool_of

ADMISSION: dict[str, float | int] = {"hysteresis": -1.0, "max_uploads": UNLIMITED}
"""First parameters of every policy that serves from the heap: h and U."""

IS_HEAP = -1
"""``num_ready`` of a policy whose pools are heaps."""


def new_heap(setup: PolicySetup, num_floats: int = 0, num_ints: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(float_state, int_state): initial residents with worth 0, used in ascending (layer, expert)."""
    num_keys, num_pools = setup.num_layers * setup.num_experts, setup.num_pools
    state = np.zeros(4 * num_keys + num_pools + 1 + num_ints, np.int64)
    place, last = state[num_keys : 2 * num_keys], state[2 * num_keys : 3 * num_keys]
    entry_last, size = state[3 * num_keys : 4 * num_keys], state[4 * num_keys : 4 * num_keys + num_pools]
    place[:] = -1
    initial = initial_nodes(setup)
    for number, (pool, node) in enumerate(initial):
        at = pool * (num_keys // num_pools) + size[pool]
        state[at], place[node] = node, size[pool]
        last[node] = entry_last[at] = number + 1
        size[pool] += 1
    state[4 * num_keys + num_pools] = len(initial) + 1
    return np.zeros(2 * num_keys + num_floats, np.float64), state


@inlined
def num_int_words(num_keys, num_pools):
    """Where a policy's own integers begin."""
    return 4 * num_keys + num_pools + 1


@inlined
def num_float_words(num_keys):
    """Where a policy's own floats begin."""
    return 2 * num_keys


@inlined
def _set(worth, state, num_keys, start, i, node, value, last):
    """Entry i of a heap."""
    state[at(start + i)] = node
    state[at(num_keys + node)] = i
    worth[at(num_keys + start + i)] = value
    state[at(3 * num_keys + start + i)] = last


@compiled
def _rise(worth, state, num_keys, start, i):
    node, value, last = state[at(start + i)], worth[at(num_keys + start + i)], state[at(3 * num_keys + start + i)]
    while i > 0:
        parent = (i - 1) >> 1
        above, above_last = worth[at(num_keys + start + parent)], state[at(3 * num_keys + start + parent)]
        if above < value or (above == value and above_last < last):
            break
        _set(worth, state, num_keys, start, i, state[at(start + parent)], above, above_last)
        i = parent
    _set(worth, state, num_keys, start, i, node, value, last)


@compiled
def _sink(worth, state, num_keys, start, size, i):
    node, value, last = state[at(start + i)], worth[at(num_keys + start + i)], state[at(3 * num_keys + start + i)]
    while 2 * i + 1 < size:
        child = 2 * i + 1
        below, below_last = worth[at(num_keys + start + child)], state[at(3 * num_keys + start + child)]
        if child + 1 < size:
            other, other_last = worth[at(num_keys + start + child + 1)], state[at(3 * num_keys + start + child + 1)]
            if other < below or (other == below and other_last < below_last):
                child, below, below_last = child + 1, other, other_last
        if value < below or (value == below and last < below_last):
            break
        _set(worth, state, num_keys, start, i, state[at(start + child)], below, below_last)
        i = child
    _set(worth, state, num_keys, start, i, node, value, last)


@compiled
def put(worth, state, num_keys, num_pools, pool, node, scan):
    """Put a node into its pool, in any place where the pool is no heap (``scan``)."""
    start, size = pool * (num_keys // num_pools), state[at(4 * num_keys + pool)]
    _set(worth, state, num_keys, start, size, node, worth[at(node)], state[at(2 * num_keys + node)])
    state[at(4 * num_keys + pool)] = size + 1
    if not scan:
        _rise(worth, state, num_keys, start, size)


@compiled
def _take_lowest(worth, state, num_keys, num_pools, pool, scan, known):
    """Take the lowest node out of a pool that is not empty; ``scan`` where the pool is no heap.

    ``known``: the node, where it was selected before, else -1.
    """
    start, size = pool * (num_keys // num_pools), state[at(4 * num_keys + pool)]
    where = 0
    if known >= 0:
        where = state[at(num_keys + known)]
    elif scan:  # places know the worth, nodes the last use
        for i in range(1, size):
            a, b = worth[at(num_keys + start + i)], worth[at(num_keys + start + where)]
            last = state[at(2 * num_keys + state[at(start + i)])]
            lowest_last = state[at(2 * num_keys + state[at(start + where)])]
            if a < b or (a == b and last < lowest_last):
                where = i
        worth[at(state[at(start + where)])] = worth[at(num_keys + start + where)]
    else:
        while True:
            node = state[at(start)]
            is_known = state[at(3 * num_keys + start)] == state[at(2 * num_keys + node)]
            if is_known and worth[at(num_keys + start)] == worth[at(node)]:
                break
            worth[at(num_keys + start)] = worth[at(node)]
            state[at(3 * num_keys + start)] = state[at(2 * num_keys + node)]
            _sink(worth, state, num_keys, start, size, 0)
    node = state[at(start + where)]
    state[at(num_keys + node)] = -1
    size -= 1
    state[at(4 * num_keys + pool)] = size
    if where < size:
        _set(
            worth, state, num_keys, start, where, state[at(start + size)], worth[at(num_keys + start + size)],
            state[at(3 * num_keys + start + size)],
        )  # fmt: skip
        if not scan:
            _sink(worth, state, num_keys, start, size, 0)
    return node


@inlined
def lowered(worth, state, num_keys, num_pools, pool, node):
    """The worth of a node may have fallen: weigh it anew, if it is in the heap."""
    i = state[at(num_keys + node)]
    start = pool * (num_keys // num_pools)
    if i >= 0 and worth[at(node)] < worth[at(num_keys + start + i)]:
        worth[at(num_keys + start + i)] = worth[at(node)]
        _rise(worth, state, num_keys, start, i)


@compiled
def weigh_anew(worth, state, num_keys, num_pools, pool):
    """All worths of a pool may have changed: take them over, and order the heap from the bottom up."""
    start, size = pool * (num_keys // num_pools), state[at(4 * num_keys + pool)]
    for i in range(size):
        node = state[at(start + i)]
        worth[at(num_keys + start + i)] = worth[at(node)]
        state[at(3 * num_keys + start + i)] = state[at(2 * num_keys + node)]
    for i in range(size // 2 - 1, -1, -1):
        _sink(worth, state, num_keys, start, size, i)


@compiled
def select_lowest(view):
    """Whom the request can need out, into ``view.prefetch[:, 1]``, lowest first, nobody in use; return how many.

    All worths of the pool stand by place (``float_state[num_keys + start + i]``), not by node.
    """
    score, state, num_keys, num_pools = view.float_state, view.int_state, view.resident.size, view.free_slots.shape[1]
    pool, bytes_each, ready = pool_of(view.layer, view.free_slots), view.expert_bytes[1, view.layer], view.prefetch
    start, size = pool * (num_keys // num_pools), state[at(4 * num_keys + pool)]
    wanted = min(len(view.misses), view.upload_budget, view.int_parameters[0])
    lacking_bytes = wanted * bytes_each - view.free_bytes[0, pool]
    most = wanted - view.free_slots[0, pool]
    if lacking_bytes > 0:
        most = max(most, -(-lacking_bytes // max(bytes_each, 1)))
    most = max(0, min(most, size))
    num_ready = 0
    if most == 0:
        return num_ready
    highest, highest_last = np.inf, np.int64(NEVER)
    for i in range(size):
        value = score[at(num_keys + start + i)]
        if value > highest:
            continue
        node = state[at(start + i)]
        last = state[at(2 * num_keys + node)]
        if (value == highest and last > highest_last) or is_in_use(view, node):
            continue
        score[at(node)] = value
        k = min(num_ready, most - 1)
        while k > 0:
            other = np.int64(ready[at(k - 1), 1])
            if score[at(other)] < value or (score[at(other)] == value and state[at(2 * num_keys + other)] < last):
                break
            ready[at(k), 1] = other
            k -= 1
        ready[at(k), 1] = node
        num_ready = min(num_ready + 1, most)
        if num_ready == most:
            worst = np.int64(ready[at(most - 1), 1])
            highest, highest_last = score[at(worst)], state[at(2 * num_keys + worst)]
    return num_ready


@inlined
def touch(view, node):
    """Give a node the next number of use."""
    state, num_keys, num_pools = view.int_state, view.resident.size, view.free_slots.shape[1]
    state[at(2 * num_keys + node)] = state[at(4 * num_keys + num_pools)]
    state[at(4 * num_keys + num_pools)] += 1


@compiled
def serve(view, num_ready):
    """Admit misses by falling score, evict the lowest; h and U are the policy's first parameters.

    ``num_ready``: what ``select_lowest`` returned; ``IS_HEAP`` where the pool is a heap.
    """
    scan, next_ready = num_ready >= 0, 0
    score, state, num_keys, num_pools = view.float_state, view.int_state, view.resident.size, view.free_slots.shape[1]
    layer, experts, misses, admit, aside = view.layer, view.experts, view.misses, view.admit, view.prefetch
    pool, first, overflow = pool_of(layer, view.free_slots), layer * view.resident.shape[1], view.flags & FLAG_OVERFLOW
    hysteresis = view.float_parameters[0]
    slots, room, bytes_each = view.free_slots[0, pool], view.free_bytes[0, pool], view.expert_bytes[1, layer]
    for j in range(len(misses)):  # stable insertion by falling score
        expert, k = experts[at(misses[at(j)])], j
        while k > 0 and score[at(first + admit[at(k - 1), 0])] < score[at(first + expert)]:
            admit[at(k), 0] = admit[at(k - 1), 0]
            k -= 1
        admit[at(k), 0] = expert
    num_admit = 0
    num_evict = 0
    num_aside = 0
    for k in range(min(len(misses), view.upload_budget, view.int_parameters[0])):
        node, num_before, is_worth_it = first + admit[at(k), 0], num_evict, True
        while slots < 1 or room < bytes_each:
            victim = -1
            while victim < 0 and state[at(4 * num_keys + pool)] > 0:
                known = np.int64(-1)
                if next_ready < num_ready:
                    known = np.int64(view.prefetch[at(next_ready), 1])
                    next_ready += 1
                victim = _take_lowest(score, state, num_keys, num_pools, pool, scan, known)
                if is_in_use(view, victim):
                    aside[at(num_aside), 0] = victim
                    num_aside += 1
                    victim = -1
            if victim < 0:
                is_worth_it = overflow > 0
                break
            if hysteresis > -1 and score[at(node)] <= (1 + hysteresis) * score[at(victim)]:
                put(score, state, num_keys, num_pools, pool, victim, scan)
                is_worth_it = False
                break
            room += note_eviction(view, num_evict, victim)
            slots += 1
            num_evict += 1
        if not is_worth_it:
            num_ready = min(num_ready, 0)  # who was put back is lower than those that are left of the selection
            while num_evict > num_before:
                num_evict -= 1
                of_layer = np.int64(view.evict[at(num_evict), 0])
                spared = of_layer * view.resident.shape[1] + view.evict[at(num_evict), 1]
                put(score, state, num_keys, num_pools, pool, spared, scan)
                slots -= 1
                room -= view.expert_bytes[1, of_layer]
            break
        admit[at(k), 1] = 0
        num_admit += 1
        slots -= 1
        room -= bytes_each
    while overflow and (slots < 0 or room < 0) and state[at(4 * num_keys + pool)] > 0:
        known = np.int64(-1)
        if next_ready < num_ready:
            known = np.int64(view.prefetch[at(next_ready), 1])
            next_ready += 1
        victim = _take_lowest(score, state, num_keys, num_pools, pool, scan, known)
        if is_in_use(view, victim):
            aside[at(num_aside), 0] = victim
            num_aside += 1
        else:
            room += note_eviction(view, num_evict, victim)
            slots += 1
            num_evict += 1
    for k in range(num_aside):
        put(score, state, num_keys, num_pools, pool, np.int64(aside[at(k), 0]), scan)
    for k in range(num_admit):
        put(score, state, num_keys, num_pools, pool, first + admit[at(k), 0], scan)
    view.num_out[ADMIT] = num_admit
    view.num_out[EVICT] = num_evict
