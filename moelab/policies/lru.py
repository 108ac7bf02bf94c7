"""lru: admit every miss, evict the resident that was used longest ago; set requests, pinned while in use.

Reference: least recently used; as an expert cache in mixtral-offloading (Eliseev and Mazur 2023,
arXiv 2312.17238, section 3.1). Where we differ: a request is a set, judged and evicted as one event
(siblings never evict each other); within a set the order of last appearance is the order of
recency, whether an expert hit or missed, so that recency does not depend on capacity. Misses are
admitted in the same order until the room that unused residents can give is used up; the rest
is bypassed. With ``overflow`` every miss is admitted and the used set may exceed the room, as recorded
engines do; then hits at capacity C are exactly the set-request reuse distances below C.

Uses fast tier 0 only. State: one circular doubly linked list per pool, as (older, newer) pairs of int32 in
the first words of ``int_state`` (half the size stays in the core's cache): node ``layer * E + expert``, and as
head of a pool node ``L * E + pool``, older than the oldest and newer than the newest. Then [L * E] flags of
what the plan fixed (pinned, or on another tier; such a node points to itself) and their number.
Time per request O(M + evictions). Initial residents count as used once, in ascending (layer, expert). Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.signature import ADMIT, EVICT, FLAG_OVERFLOW, pool_of


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """Lists of the initial residents of tier 0 that the plan did not pin."""
    num_keys, num_pools = setup.num_layers * setup.num_experts, setup.num_pools
    nodes = np.arange(num_keys + num_pools)
    links = np.repeat(nodes, 2)
    for layer, expert in np.argwhere((setup.resident == 1) & ~setup.pinned):
        head = num_keys + (layer if num_pools > 1 else 0)
        node, newest = layer * setup.num_experts + expert, links[2 * head]
        links[2 * node], links[2 * node + 1] = newest, head
        links[2 * newest + 1] = links[2 * head] = node
    fixed = (setup.pinned | (setup.resident > 1)).ravel()
    words = links.astype(np.int32).view(np.int64)
    return np.zeros(0, np.float64), np.concatenate([words, fixed, [fixed.sum()]])


@compiled
def decide(view):
    """Take the used out of the list, make room from its old end, put the used back as the newest."""
    layer, resident, experts, hits, misses = view.layer, view.resident, view.experts, view.hits, view.misses
    free_slots, free_bytes, expert_bytes, admit, evict = (
        view.free_slots, view.free_bytes, view.expert_bytes, view.admit, view.evict
    )  # fmt: skip
    if len(free_slots) == 0:
        return
    num_layers, num_experts = resident.shape
    first, pool, num_pools = layer * num_experts, pool_of(layer, free_slots), free_slots.shape[1]
    head = num_layers * num_experts + pool
    links = view.int_state[: num_layers * num_experts + num_pools].view(np.int32)
    fixed = view.int_state[num_layers * num_experts + num_pools :]
    has_fixed = fixed[num_layers * num_experts] > 0
    for i in hits:
        node = 2 * (first + experts[at(i)])
        older, newer = np.int64(links[at(node)]), np.int64(links[at(node + 1)])
        links[at(2 * older + 1)] = newer
        links[at(2 * newer)] = older
    bytes_each = expert_bytes[1, layer]
    slots, room = free_slots[0, pool], free_bytes[0, pool]
    num_wanted = min(len(misses), view.upload_budget)
    num_evict = 0
    oldest = np.int64(links[2 * head + 1])
    while oldest != head and (slots < num_wanted or room < num_wanted * bytes_each):
        of_layer = layer if num_pools > 1 else oldest // num_experts
        evict[at(num_evict), 0] = of_layer
        evict[at(num_evict), 1] = oldest - of_layer * num_experts
        num_evict += 1
        slots += 1
        room += expert_bytes[1, at(of_layer)]
        oldest = np.int64(links[at(2 * oldest + 1)])
    num_admit = num_wanted
    if not view.flags & FLAG_OVERFLOW:
        while slots < num_admit or room < num_admit * bytes_each:
            num_admit -= 1
    links[2 * head + 1] = oldest
    links[2 * oldest] = head
    for j in range(num_admit):
        admit[at(j), 0] = experts[at(misses[at(j)])]
        admit[at(j), 1] = 0
    newest = np.int64(links[2 * head])
    all_stay = num_admit == len(misses) and not has_fixed
    next_miss = 0
    for i in range(len(experts)):
        node = first + experts[at(i)]
        if not all_stay:
            if next_miss < len(misses) and misses[next_miss] == i:
                next_miss += 1
                if next_miss > num_admit:
                    continue
            elif fixed[node]:
                continue
        links[at(2 * newest + 1)] = node
        links[at(2 * node)] = newest
        newest = node
    links[2 * newest + 1] = head
    links[2 * head] = newest
    view.num_out[ADMIT] = num_admit
    view.num_out[EVICT] = num_evict


POLICY = Policy(
    name="lru",
    decide=decide,
    reference="Eliseev and Mazur 2023, arXiv 2312.17238",
    parameters={},
    new_state=new_state,
    layers_are_apart=True,
)
