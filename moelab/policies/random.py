"""random: evict a resident drawn at random; the floor under every policy that looks at something.

Reference: random replacement; numbers from Park and Miller 1988 (x <- 48271 x mod 2^31 - 1). Where we differ: a
request is a set; a draw that hits an expert in use is repeated. Misses are admitted in order of last
appearance. Fast tier 0 only; per layer or global, slots or bytes, with or without ``overflow``. State: per pool the
evictable residents in a row (an evicted one is replaced by the last), each one's place, their number, and the
generator's x. Parameter ``seed``. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.room import answer, initial_nodes, is_in_use, note_eviction, num_that_fit, num_wanted
from moelab.policies.signature import pool_of

_MODULUS = 2**31 - 1


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """``row`` [L * E] (pool p owns its stretch), ``place`` [L * E] or -1, ``num`` [P], x [1]."""
    num_keys, num_pools = setup.num_layers * setup.num_experts, setup.num_pools
    state = np.zeros(2 * num_keys + num_pools + 1, np.int64)
    state[num_keys : 2 * num_keys] = -1
    num = state[2 * num_keys : -1]
    for pool, node in initial_nodes(setup):
        state[pool * (num_keys // num_pools) + num[pool]] = node
        state[num_keys + node] = num[pool]
        num[pool] += 1
    state[-1] = int(setup.parameters["seed"]) % (_MODULUS - 1) + 1
    return np.zeros(0, np.float64), state


@compiled
def decide(view):
    """Draw victims until the misses fit or every evictable resident is in use."""
    if len(view.free_slots) == 0:
        return
    state, num_keys, num_pools = view.int_state, view.resident.size, view.free_slots.shape[1]
    pool = pool_of(view.layer, view.free_slots)
    start, first = pool * (num_keys // num_pools), view.layer * view.resident.shape[1]
    slots, room = view.free_slots[0, pool], view.free_bytes[0, pool]
    wanted, bytes_each = num_wanted(view), view.expert_bytes[1, view.layer]
    num = state[at(2 * num_keys + pool)]
    num_free_to_go = num
    for i in view.hits:
        num_free_to_go -= state[at(num_keys + first + view.experts[i])] >= 0
    x = state[at(2 * num_keys + num_pools)]
    num_evict = 0
    while num_free_to_go > 0 and (slots < wanted or room < wanted * bytes_each):
        x = x * 48271 % _MODULUS
        drawn = x % num
        node = state[at(start + drawn)]
        if is_in_use(view, node):
            continue
        num -= 1
        moved = state[at(start + num)]
        state[at(start + drawn)] = moved
        state[at(num_keys + moved)] = drawn
        state[at(num_keys + node)] = -1
        num_free_to_go -= 1
        room += note_eviction(view, num_evict, node)
        slots += 1
        num_evict += 1
    num_admit = num_that_fit(view, wanted, slots, room)
    for j in range(num_admit):
        node = first + view.experts[view.misses[j]]
        state[at(start + num)] = node
        state[at(num_keys + node)] = num
        num += 1
    state[at(2 * num_keys + pool)] = num
    state[at(2 * num_keys + num_pools)] = x
    answer(view, num_admit, num_evict)


POLICY = Policy(
    name="random",
    decide=decide,
    reference="Park and Miller 1988 (generator)",
    parameters={"seed": 0},
    new_state=new_state,
)
