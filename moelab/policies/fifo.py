"""fifo: evict what was admitted longest ago; the floor of the list policies, a use changes nothing.

Reference: first in, first out. Where we differ: a request is a set; what it uses is passed over as a victim and
keeps its place. Misses are admitted in order of last appearance. Fast tier 0 only; per layer or global, slots or
bytes, with or without ``overflow``. State: one list per pool, oldest admission first (``linked_list``);
initial residents count as admitted in ascending (layer, expert). Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import compiled
from moelab.policies.linked_list import lists_of_residents, newer, push, unlink
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.room import answer, is_in_use, note_eviction, num_that_fit, num_wanted
from moelab.policies.signature import pool_of


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """Lists of the initial residents."""
    return np.zeros(0, np.float64), lists_of_residents(setup)


@compiled
def decide(view):
    """Oldest admissions out, misses in."""
    if len(view.free_slots) == 0:
        return
    num_keys = view.resident.size
    pool = pool_of(view.layer, view.free_slots)
    head, first = num_keys + pool, view.layer * view.resident.shape[1]
    links = view.int_state[: num_keys + view.free_slots.shape[1]].view(np.int32)
    slots, room = view.free_slots[0, pool], view.free_bytes[0, pool]
    wanted, bytes_each = num_wanted(view), view.expert_bytes[1, view.layer]
    num_evict = 0
    node = newer(links, head)
    while node != head and (slots < wanted or room < wanted * bytes_each):
        after = newer(links, node)
        if not is_in_use(view, node):
            unlink(links, node)
            room += note_eviction(view, num_evict, node)
            slots += 1
            num_evict += 1
        node = after
    num_admit = num_that_fit(view, wanted, slots, room)
    for j in range(num_admit):
        push(links, head, first + view.experts[view.misses[j]])
    answer(view, num_admit, num_evict)


POLICY = Policy(
    name="fifo",
    decide=decide,
    reference="first in, first out",
    parameters={},
    new_state=new_state,
    layers_are_apart=True,
)
