"""prefetch_lru: LRU on demand, and copying ahead what a prediction names for the next layer.  Floor 1.

What the prefetching policies share; each says who is predicted (``prefetch_previous``, ``prefetch_stale_gate``,
``prefetch_markov``, ``prefetch_eam``). First the request is served as by ``lru``. Then the predicted experts of the
next layer, in the order given, as many as the upload budget has left: a resident one becomes the newest use of its
pool, a missing one takes free room or the place of the oldest that is neither in use nor predicted now. Every copy is
a prefetch in the accounting, used or not; a useful one saves a miss of the next layer in the same pass. The last
layer predicts nothing.

``int_state``: links of L * E nodes and P heads (``linked_list``, by last use), [L * E] clock of the request that
last predicted a node; then the policy's own (``num_words``). Initial residents in ascending (layer, expert).
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled, inlined
from moelab.policies.linked_list import lists_of_residents, newer, push, unlink
from moelab.policies.policy import PolicySetup
from moelab.policies.room import is_ours, note_eviction, num_that_fit, num_wanted
from moelab.policies.signature import ADMIT, EVICT, PREFETCH, pool_of


def new_lists(setup: PolicySetup, num_ints: int = 0) -> np.ndarray:
    """int_state with the lists of the initial residents; nothing predicted."""
    num_keys = setup.num_layers * setup.num_experts
    links = lists_of_residents(setup)
    return np.concatenate([links, np.full(num_keys, -1), np.zeros(num_ints, np.int64)])


@inlined
def num_words(num_keys, num_pools):
    """Where a policy's own integers begin."""
    return 2 * num_keys + num_pools


@compiled
def serve_lru(view):
    """The request on demand, least recently used out; leaves the answer as ``lru`` does."""
    num_keys, num_pools = view.resident.size, view.free_slots.shape[1]
    pool = pool_of(view.layer, view.free_slots)
    head, first = num_keys + pool, view.layer * view.resident.shape[1]
    links = view.int_state[: num_keys + num_pools].view(np.int32)
    for i in view.hits:
        if is_ours(view, i):
            unlink(links, first + view.experts[i])
    slots, room = view.free_slots[0, pool], view.free_bytes[0, pool]
    wanted, bytes_each = num_wanted(view), view.expert_bytes[1, view.layer]
    num_evict = 0
    while newer(links, head) != head and (slots < wanted or room < wanted * bytes_each):
        victim = newer(links, head)
        unlink(links, victim)
        room += note_eviction(view, num_evict, victim)
        slots += 1
        num_evict += 1
    num_admit = num_that_fit(view, wanted, slots, room)
    next_miss = 0
    for i in range(len(view.experts)):
        if next_miss < len(view.misses) and view.misses[next_miss] == i:
            if next_miss < num_admit:
                view.admit[next_miss, 0] = view.experts[i]
                view.admit[next_miss, 1] = 0
                push(links, head, first + view.experts[i])
            next_miss += 1
        elif is_ours(view, i):
            push(links, head, first + view.experts[i])
    view.num_out[ADMIT] = num_admit
    view.num_out[EVICT] = num_evict


@compiled
def copy_ahead(view, layer, predicted, num_predicted):
    """Bring the first ``num_predicted`` of ``predicted`` (experts of a later ``layer``) in.

    As far as room and budget go; called again for another layer it goes on behind what it has answered.
    """
    num_layers, num_experts = view.resident.shape
    num_keys, num_pools = view.resident.size, view.free_slots.shape[1]
    if layer >= num_layers:
        return
    links = view.int_state[: num_keys + num_pools].view(np.int32)
    marks = view.int_state[num_keys + num_pools :]
    pool = pool_of(layer, view.free_slots)
    head, bytes_each = num_keys + pool, view.expert_bytes[1, layer]
    slots, room, num_evict = view.free_slots[0, pool], view.free_bytes[0, pool], view.num_out[EVICT]
    num_prefetch = view.num_out[PREFETCH]
    if num_pools == 1:  # the same pool: what the request has changed counts
        slots += num_evict - view.num_out[ADMIT] - num_prefetch
        room -= view.num_out[ADMIT] * view.expert_bytes[1, view.layer]
        for k in range(num_evict):
            room += view.expert_bytes[1, view.evict[k, 0]]
        for k in range(num_prefetch):
            room -= view.expert_bytes[1, view.prefetch[k, 0]]
    left = view.upload_budget - view.num_out[ADMIT]
    for k in range(num_predicted):
        node = layer * num_experts + predicted[k]
        marks[at(node)] = view.clock
        if view.resident[layer, predicted[k]] == 1 and not view.pinned[layer, predicted[k]]:
            is_going = False  # this very request may have evicted it
            for j in range(view.num_out[EVICT]):
                is_going |= view.evict[j, 0] == layer and view.evict[j, 1] == predicted[k]
            if not is_going:
                unlink(links, node)
                push(links, head, node)
    for k in range(num_predicted):
        expert = np.int64(predicted[k])
        if view.resident[layer, expert] != 0:
            continue
        if num_prefetch == left:
            break
        victim = newer(links, head)
        while slots < 1 or room < bytes_each:
            while victim != head:
                of_layer = victim // num_experts
                is_free = view.resident[of_layer, victim - of_layer * num_experts] == 1
                if is_free and marks[at(victim)] != view.clock:
                    break
                victim = newer(links, victim)
            if victim == head:
                break
            after = newer(links, victim)
            unlink(links, victim)
            view.evict[num_evict, 0] = of_layer
            view.evict[num_evict, 1] = victim - of_layer * num_experts
            room += view.expert_bytes[1, of_layer]
            slots += 1
            num_evict += 1
            victim = after
        if slots < 1 or room < bytes_each:
            break
        view.prefetch[num_prefetch, 0] = layer
        view.prefetch[num_prefetch, 1] = expert
        view.prefetch[num_prefetch, 2] = 0
        num_prefetch += 1
        push(links, head, layer * num_experts + expert)
        slots -= 1
        room -= bytes_each
    view.num_out[EVICT] = num_evict
    view.num_out[PREFETCH] = num_prefetch
