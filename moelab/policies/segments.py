"""segments: several lists per pool, each expert in at most one of them, and how large each list is.  Floor 1.

For policies with more than one queue (``slru``, ``s3_fifo``, ``arc``, ``w_tinylfu``). Lists are numbered from
1; sizes are in slots, or in bytes where the pool's capacity is in bytes. Ghosts (experts that are remembered
but not resident) are lists like any other. Does not know what a list means.

``int_state``: links of L * E nodes and n * P heads, ``segment`` [L * E] number of the list or 0, ``sizes`` [n,
P], ``capacity`` [P], 1 where sizes are bytes [1]; then the policy's own (from ``num_words`` on).
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled, inlined
from moelab.policies.linked_list import new_links, newer, push, unlink
from moelab.policies.policy import PolicySetup
from moelab.policies.room import capacities, initial_nodes, is_in_bytes, is_in_use
from moelab.policies.signature import pool_of


def new_segments(setup: PolicySetup, num_lists: int, num_ints: int = 0) -> np.ndarray:
    """int_state with the initial residents in list 1, in ascending (layer, expert)."""
    num_keys, num_pools = setup.num_layers * setup.num_experts, setup.num_pools
    links = new_links(num_keys + num_lists * num_pools)
    segment, sizes = np.zeros(num_keys, np.int64), np.zeros((num_lists, num_pools), np.int64)
    in_bytes = is_in_bytes(setup)
    for pool, node in initial_nodes(setup):
        push.py_func(links.view(np.int32), num_keys + pool, node)
        segment[node] = 1
        sizes[0, pool] += setup.expert_bytes[1, node // setup.num_experts] if in_bytes else 1
    own = np.zeros(num_ints, np.int64)
    return np.concatenate([links, segment, sizes.ravel(), capacities(setup), [in_bytes], own])


@inlined
def num_words(num_keys, num_pools, num_lists):
    """Where a policy's own integers begin."""
    return 2 * num_keys + (2 * num_lists + 1) * num_pools + 1


@inlined
def segment_of(view, num_lists, node):
    """Number of the list that holds a node, 0 if none does."""
    return view.int_state[at(view.resident.size + num_lists * view.free_slots.shape[1] + node)]


@inlined
def size_of(view, num_lists, which):
    """Size of a list of this request's pool."""
    num_pools = view.free_slots.shape[1]
    first = 2 * view.resident.size + num_lists * num_pools
    return view.int_state[at(first + (which - 1) * num_pools + pool_of(view.layer, view.free_slots))]


@inlined
def capacity_of(view, num_lists):
    """What the policy has of this request's pool."""
    num_pools = view.free_slots.shape[1]
    return view.int_state[at(2 * view.resident.size + 2 * num_lists * num_pools + pool_of(view.layer, view.free_slots))]


@inlined
def unit_of(view, num_lists, node):
    """Size of an expert of this request's pool: its bytes, or 1 slot."""
    num_pools = view.free_slots.shape[1]
    if not view.int_state[at(2 * view.resident.size + (2 * num_lists + 1) * num_pools)]:
        return 1
    of_layer = view.layer if num_pools > 1 else node // view.resident.shape[1]
    return view.expert_bytes[1, of_layer]


@compiled
def move(view, num_lists, node, which):
    """Put a node at the new end of a list of this request's pool, out of the list it was in; list 0: nowhere."""
    state, num_keys, num_pools = view.int_state, view.resident.size, view.free_slots.shape[1]
    pool = pool_of(view.layer, view.free_slots)
    links = state[: num_keys + num_lists * num_pools].view(np.int32)
    segment = num_keys + num_lists * num_pools + node
    sizes = 2 * num_keys + num_lists * num_pools + pool
    unit = unit_of(view, num_lists, node)
    if state[at(segment)] > 0:
        unlink(links, node)
        state[at(sizes + (state[at(segment)] - 1) * num_pools)] -= unit
    state[at(segment)] = which
    if which > 0:
        push(links, num_keys + (which - 1) * num_pools + pool, node)
        state[at(sizes + (which - 1) * num_pools)] += unit


@compiled
def oldest(view, num_lists, which, may_be_in_use):
    """Oldest node of a list of this request's pool, -1 if there is none; without those in use unless they may be."""
    state, num_keys, num_pools = view.int_state, view.resident.size, view.free_slots.shape[1]
    links = state[: num_keys + num_lists * num_pools].view(np.int32)
    head = num_keys + (which - 1) * num_pools + pool_of(view.layer, view.free_slots)
    node = newer(links, head)
    while node != head and not may_be_in_use and is_in_use(view, node):
        node = newer(links, node)
    return -1 if node == head else node
