"""sieve: one queue that never moves, a used bit, and a hand that goes from old to new and evicts the unused.

Reference: SIEVE (Zhang et al., NSDI 2024). Where we differ: a request is a set; the hand passes over what the
request uses and leaves its bit. The bit is set by a hit. Misses are admitted in order of last appearance. Fast
tier 0 only; per layer or global, slots or bytes, with or without ``overflow``. State: one list per pool in order
of admission (``linked_list``), [L * E] used bits, [P] the hand of each pool (its head: the hand begins at the
oldest), [P] lengths; initial residents in ascending (layer, expert), unused. Single-expert streams equal libcachesim's
Sieve. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.linked_list import lengths_of_lists, lists_of_residents, newer, push, unlink
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.room import answer, is_in_use, is_ours, note_eviction, num_that_fit, num_wanted
from moelab.policies.signature import pool_of


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """Lists of the initial residents; nobody used; hands at the old ends."""
    num_keys = setup.num_layers * setup.num_experts
    links = lists_of_residents(setup)
    hands, lengths = num_keys + np.arange(setup.num_pools), lengths_of_lists(setup)
    return np.zeros(0, np.float64), np.concatenate([links, np.zeros(num_keys, np.int64), hands, lengths])


@compiled
def decide(view):
    """Move the hand until the misses fit, as long as somebody is not in use."""
    if len(view.free_slots) == 0:
        return
    num_keys, num_pools = view.resident.size, view.free_slots.shape[1]
    pool = pool_of(view.layer, view.free_slots)
    head, first = num_keys + pool, view.layer * view.resident.shape[1]
    links = view.int_state[: num_keys + num_pools].view(np.int32)
    used = view.int_state[num_keys + num_pools : 2 * num_keys + num_pools]
    hands = view.int_state[2 * num_keys + num_pools : 2 * num_keys + 2 * num_pools]
    lengths = view.int_state[2 * num_keys + 2 * num_pools :]
    num_free_to_go = lengths[at(pool)]
    for i in view.hits:
        used[at(first + view.experts[i])] = 1
        num_free_to_go -= is_ours(view, i)
    slots, room = view.free_slots[0, pool], view.free_bytes[0, pool]
    wanted, bytes_each = num_wanted(view), view.expert_bytes[1, view.layer]
    num_evict = 0
    hand = hands[at(pool)]
    while num_free_to_go > 0 and (slots < wanted or room < wanted * bytes_each):
        if hand == head:
            hand = newer(links, head)
            continue
        after = newer(links, hand)
        if not is_in_use(view, hand):
            if used[at(hand)]:
                used[at(hand)] = 0
            else:
                unlink(links, hand)
                room += note_eviction(view, num_evict, hand)
                slots += 1
                num_evict += 1
                num_free_to_go -= 1
        hand = after
    hands[at(pool)] = hand
    num_admit = num_that_fit(view, wanted, slots, room)
    for j in range(num_admit):
        node = first + view.experts[view.misses[j]]
        used[at(node)] = 0
        push(links, head, node)
    lengths[at(pool)] += num_admit - num_evict
    answer(view, num_admit, num_evict)


POLICY = Policy(
    name="sieve",
    decide=decide,
    reference="Zhang et al. 2024 (NSDI)",
    parameters={},
    new_state=new_state,
    layers_are_apart=True,
)
