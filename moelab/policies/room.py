"""room: what every policy that fills on demand asks: who is wanted, who may go, what fits, the answer.  Floor 1.

Fast tier 0 only. A node is ``layer * E + expert``. Sizes are bytes where the pool has a capacity in bytes, else
slots (``unit_of``). Does not know any order of eviction.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, inlined
from moelab.policies.policy import PolicySetup
from moelab.policies.signature import ADMIT, EVICT, FLAG_OVERFLOW, IN_USE, UNLIMITED


def initial_nodes(setup: PolicySetup) -> list[tuple[int, int]]:
    """(pool, node) of each expert on tier 0 that the plan did not pin, in ascending (layer, expert)."""
    keys = np.argwhere((setup.resident == 1) & ~setup.pinned).tolist()
    return [(layer if setup.num_pools > 1 else 0, layer * setup.num_experts + expert) for layer, expert in keys]


def is_in_bytes(setup: PolicySetup) -> bool:
    """Is the capacity of tier 0 given in bytes?"""
    return bool(len(setup.free_bytes)) and bool((setup.free_bytes[0] < UNLIMITED // 2).any())


def capacities(setup: PolicySetup) -> np.ndarray:
    """int64 [P]: what the policy has of tier 0, in units: free room and the initial residents that may go."""
    if not len(setup.free_slots):
        return np.zeros(setup.num_pools, np.int64)
    in_bytes = is_in_bytes(setup)
    out = (setup.free_bytes if in_bytes else setup.free_slots)[0].copy()
    for pool, node in initial_nodes(setup):
        out[pool] += setup.expert_bytes[1, node // setup.num_experts] if in_bytes else 1
    return out


@inlined
def num_wanted(view):
    """Misses that the upload budget lets in."""
    return min(len(view.misses), view.upload_budget)


@inlined
def is_ours(view, i):
    """Is the i-th expert of the request a resident that the policy may evict at another time?"""
    expert = view.experts[at(i)]
    return view.resident[at(view.layer), at(expert)] == IN_USE | 1 and not view.pinned[at(view.layer), at(expert)]


@inlined
def layer_of(view, node):
    """Layer of a node of this request's pool."""
    return view.layer if view.free_slots.shape[1] > 1 else node // view.resident.shape[1]


@inlined
def is_in_use(view, node):
    """Does this request use the expert?"""
    of_layer = layer_of(view, node)
    return view.resident[at(of_layer), at(node - of_layer * view.resident.shape[1])] >= IN_USE


@inlined
def note_eviction(view, num_evict, node):
    """Write an eviction into the answer; return the bytes that it frees."""
    of_layer = layer_of(view, node)
    view.evict[at(num_evict), 0] = of_layer
    view.evict[at(num_evict), 1] = node - of_layer * view.resident.shape[1]
    return view.expert_bytes[1, of_layer]


@inlined
def num_that_fit(view, wanted, slots, room):
    """How many of the wanted fit into what is free; all of them with ``overflow``."""
    if not view.flags & FLAG_OVERFLOW:
        bytes_each = view.expert_bytes[1, view.layer]
        while wanted > 0 and (slots < wanted or room < wanted * bytes_each):
            wanted -= 1
    return wanted


@inlined
def answer(view, num_admit, num_evict):
    """Admit the first misses in their order and say how many rows are filled."""
    for j in range(num_admit):
        view.admit[at(j), 0] = view.experts[at(view.misses[at(j)])]
        view.admit[at(j), 1] = 0
    view.num_out[ADMIT] = num_admit
    view.num_out[EVICT] = num_evict
