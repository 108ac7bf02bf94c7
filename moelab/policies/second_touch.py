"""second_touch: LRU that admits a miss only if it was used before, within a window of forward passes.

Reference: the background pump of lk_moe 2.7.4 (second touch within 32 steps, LRU); its limit of copies in flight is the
plan's upload budget here. Where we differ: a request is a set and counts as one touch; age is counted in passes, so
``window`` 1 means the pass before. Others are bypassed, even into free room. Hits become the newest, admitted
misses too, in order of last appearance; the oldest not in use goes. Fast tier 0 only; per layer or global, slots or
bytes, with or without ``overflow``. State: one list per pool by last use (``linked_list``), [L * E] pass of the last
use. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.linked_list import lists_of_residents, newer, push, unlink
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.room import is_ours, note_eviction, num_that_fit
from moelab.policies.signature import ADMIT, EVICT, pool_of


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """Lists of the initial residents; nothing was touched."""
    if setup.parameters["window"] < 1:
        raise ValueError(f"window is {setup.parameters['window']}, expected at least 1 forward pass")
    num_keys = setup.num_layers * setup.num_experts
    links = lists_of_residents(setup)
    long_ago = np.full(num_keys, -(2**62))
    return np.zeros(0, np.float64), np.concatenate([links, long_ago])


@compiled
def decide(view):
    """Choose the misses that were touched before, make room, put the used at the new end."""
    if len(view.free_slots) == 0:
        return
    num_keys, num_pools = view.resident.size, view.free_slots.shape[1]
    pool = pool_of(view.layer, view.free_slots)
    head, first = num_keys + pool, view.layer * view.resident.shape[1]
    links = view.int_state[: num_keys + num_pools].view(np.int32)
    touched, now = view.int_state[num_keys + num_pools :], view.clock // view.resident.shape[0]
    for i in view.hits:
        if is_ours(view, i):
            unlink(links, first + view.experts[i])
    wanted, bytes_each = 0, view.expert_bytes[1, view.layer]
    for i in view.misses:
        if now - touched[at(first + view.experts[i])] <= view.int_parameters[0]:
            view.admit[wanted, 0] = view.experts[i]
            view.admit[wanted, 1] = 0
            wanted += 1
    wanted = min(wanted, view.upload_budget)
    slots, room = view.free_slots[0, pool], view.free_bytes[0, pool]
    num_evict = 0
    while newer(links, head) != head and (slots < wanted or room < wanted * bytes_each):
        victim = newer(links, head)
        unlink(links, victim)
        room += note_eviction(view, num_evict, victim)
        slots += 1
        num_evict += 1
    num_admit = num_that_fit(view, wanted, slots, room)
    next_admitted = 0
    for i in range(len(view.experts)):
        node = first + view.experts[i]
        touched[at(node)] = now
        if next_admitted < num_admit and view.admit[next_admitted, 0] == view.experts[i]:
            next_admitted += 1
        elif not is_ours(view, i):
            continue
        push(links, head, node)
    view.num_out[ADMIT] = num_admit
    view.num_out[EVICT] = num_evict


POLICY = Policy(
    name="second_touch",
    decide=decide,
    reference="lk_moe 2.7.4",
    parameters={"window": 32},
    new_state=new_state,
    bypasses=True,
    layers_are_apart=True,
)
