"""least_stale: evict what this forward pass has not touched, else what lies farthest ahead in the cycle of
layers.

Reference: SpecMD (Hoang et al. 2026, arXiv 2602.03921), whose abstract we know; the ties are our
reconstruction. Stale are residents that the current pass (step) has not touched: the one whose last use is
oldest goes first. If nobody is stale (one global pool that holds less than a pass), the layer just passed is
needed last: the newest use goes. Per layer nothing in the pool is ever current, and the policy is LRU. Where we
differ: a request is a set; what it uses is no victim. Misses are admitted in order of last appearance. Fast
tier 0 only; per layer or global, slots or bytes, with or without ``overflow``. State: one list per pool by last
use (``linked_list``), [L * E] step of the last use; initial residents stale, in ascending (layer, expert).
Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.linked_list import lists_of_residents, newer, older, push, unlink
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.room import answer, is_ours, note_eviction, num_that_fit, num_wanted
from moelab.policies.signature import pool_of


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """Lists of the initial residents, touched before every step."""
    num_keys = setup.num_layers * setup.num_experts
    links = lists_of_residents(setup)
    never = np.full(num_keys, np.iinfo(np.int64).min)
    return np.zeros(0, np.float64), np.concatenate([links, never])


@compiled
def decide(view):
    """Stale ones from the old end, then current ones from the new end; the used become the newest."""
    if len(view.free_slots) == 0:
        return
    num_keys, num_pools = view.resident.size, view.free_slots.shape[1]
    pool = pool_of(view.layer, view.free_slots)
    head, first = num_keys + pool, view.layer * view.resident.shape[1]
    links = view.int_state[: num_keys + num_pools].view(np.int32)
    touched = view.int_state[num_keys + num_pools :]
    for i in view.hits:
        if is_ours(view, i):
            unlink(links, first + view.experts[i])
    slots, room = view.free_slots[0, pool], view.free_bytes[0, pool]
    wanted, bytes_each = num_wanted(view), view.expert_bytes[1, view.layer]
    num_evict = 0
    while newer(links, head) != head and (slots < wanted or room < wanted * bytes_each):
        victim = newer(links, head)
        if touched[at(victim)] == view.step:
            victim = older(links, head)
        unlink(links, victim)
        room += note_eviction(view, num_evict, victim)
        slots += 1
        num_evict += 1
    num_admit = num_that_fit(view, wanted, slots, room)
    next_miss = 0
    for i in range(len(view.experts)):
        node = first + view.experts[i]
        if next_miss < len(view.misses) and view.misses[next_miss] == i:
            next_miss += 1
            if next_miss > num_admit:
                continue
        elif not is_ours(view, i):
            continue
        touched[at(node)] = view.step
        push(links, head, node)
    answer(view, num_admit, num_evict)


POLICY = Policy(
    name="least_stale",
    decide=decide,
    reference="Hoang et al. 2026, arXiv 2602.03921 (ties reconstructed)",
    parameters={},
    new_state=new_state,
    layers_are_apart=True,
)
