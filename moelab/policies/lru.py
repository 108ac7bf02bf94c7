"""lru: admit every miss, evict the resident that was used longest ago; set requests, pinned while in use.

Reference: least recently used; as an expert cache in mixtral-offloading (Eliseev and Mazur 2023,
arXiv 2312.17238, section 3.1). Where we differ: a request is a set, judged and evicted as one event
(siblings never evict each other); within a set the order of last appearance is the order of
recency, whether an expert hit or missed, so that recency does not depend on capacity. Misses are
admitted in the same order until the room that unused residents can give is used up; the rest
is bypassed. With ``overflow`` every miss is admitted and the used set may exceed the room, as recorded
engines do; then hits at capacity C are exactly the set-request reuse distances below C.

Uses fast tier 0 only. State: one circular doubly linked list per pool in ``int_state``: node
``layer * E + expert`` has (older, newer) at ``[2 * node]`` and ``[2 * node + 1]``; node ``L * E + pool``
is the pool's head, older than the oldest and newer than the newest; older is
``PINNED`` for what the plan pinned and ``NOT_LISTED`` for the rest. Time per request O(M + evictions).
Initial residents count as used once, in ascending (layer, expert). Floor 1.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.signature import ADMIT, EVICT, FLAG_OVERFLOW, PREFETCH, pool_of
from moelab.source_stamp import stamped

NOT_LISTED = -1
PINNED = -2


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """Lists of the initial residents of tier 0 that the plan did not pin."""
    num_keys = setup.num_layers * setup.num_experts
    links = np.full(2 * (num_keys + setup.num_pools), NOT_LISTED, np.int64)
    links[2 * np.flatnonzero(setup.pinned)] = PINNED
    for pool in range(setup.num_pools):
        links[2 * (num_keys + pool)] = links[2 * (num_keys + pool) + 1] = num_keys + pool
    for layer, expert in np.argwhere((setup.resident == 1) & ~setup.pinned):
        head = num_keys + (layer if setup.num_pools > 1 else 0)
        _push(links, head, layer * setup.num_experts + expert)
    return np.zeros(0, np.float64), links


@njit(cache=True, forceinline=True)
@stamped
def _unlink(links, node):
    older, newer = links[2 * node], links[2 * node + 1]
    links[2 * older + 1] = newer
    links[2 * newer] = older
    links[2 * node] = NOT_LISTED


@njit(cache=True, forceinline=True)
@stamped
def _push(links, head, node):
    """Make a node the newest."""
    newest = links[2 * head]
    links[2 * newest + 1] = node
    links[2 * node] = newest
    links[2 * node + 1] = head
    links[2 * head] = node


@njit(cache=True)
@stamped
def decide(
    clock, step, layer, flags, experts, token_counts, gate_sums, next_use, candidate_scores, stale_experts, resident,
    expert_bytes, free_slots, free_bytes, upload_budget, float_parameters, int_parameters, float_state, int_state,
    admit, evict, prefetch, num_out,
):  # fmt: skip
    """Take the used out of the list, make room from its old end, put the used back as the newest."""
    num_layers, num_experts = resident.shape
    num_out[ADMIT] = 0
    num_out[EVICT] = 0
    num_out[PREFETCH] = 0
    if len(free_slots) == 0:
        return
    pool = pool_of(layer, free_slots)
    head = num_layers * num_experts + pool
    bytes_each = expert_bytes[1, layer]
    slots, room = free_slots[0, pool], free_bytes[0, pool]
    overflow = flags & FLAG_OVERFLOW
    num_misses = 0
    for i in range(len(experts)):
        expert = np.int64(experts[i])
        node = layer * num_experts + expert
        if resident[layer, expert] == 0:
            num_misses += 1
        elif int_state[2 * node] >= 0:
            _unlink(int_state, node)
    num_wanted = min(num_misses, upload_budget)
    num_admit = 0
    num_evict = 0
    if overflow:
        num_admit = num_wanted
        slots -= num_wanted
        room -= num_wanted * bytes_each
    while (overflow and (slots < 0 or room < 0)) or (not overflow and num_admit < num_wanted):
        if not overflow and slots >= 1 and room >= bytes_each:
            num_admit += 1
            slots -= 1
            room -= bytes_each
            continue
        oldest = int_state[2 * head + 1]
        if oldest == head:
            break
        _unlink(int_state, oldest)
        of_layer = layer if free_slots.shape[1] > 1 else oldest // num_experts
        evict[num_evict, 0] = of_layer
        evict[num_evict, 1] = oldest - of_layer * num_experts
        num_evict += 1
        slots += 1
        room += expert_bytes[1, of_layer]
    left = num_admit
    for i in range(len(experts)):
        expert = np.int64(experts[i])
        node = layer * num_experts + expert
        if resident[layer, expert] == 0:
            if left == 0:
                continue
            admit[num_admit - left, 0] = expert
            admit[num_admit - left, 1] = 0
            left -= 1
            _push(int_state, head, node)
        elif resident[layer, expert] == 1 and int_state[2 * node] == NOT_LISTED:
            _push(int_state, head, node)
    num_out[ADMIT] = num_admit
    num_out[EVICT] = num_evict


POLICY = Policy(
    name="lru",
    decide=decide,
    reference="Eliseev and Mazur 2023, arXiv 2312.17238",
    parameters={},
    new_state=new_state,
)
