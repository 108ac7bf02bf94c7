"""linked_list: doubly linked circular lists of experts inside a policy's integer state.  Floor 1.

Node ``layer * E + expert`` is an expert, nodes from ``L * E`` on are heads. ``links`` int32 holds (older, newer) of
each node: older of a head is the newest, newer of a head the oldest. A node lies in at most one list; what lies
nowhere has links that mean nothing. int32 pairs, because half the size stays in the core's cache. Does not
know what the lists mean.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, inlined
from moelab.policies.policy import PolicySetup
from moelab.policies.room import initial_nodes


def new_links(num_nodes: int) -> np.ndarray:
    """int64 [num_nodes] words of links in which every head is an empty list."""
    return np.repeat(np.arange(num_nodes, dtype=np.int32), 2).view(np.int64)


def lists_of_residents(setup: PolicySetup) -> np.ndarray:
    """int64 words of links, one list for each pool: the residents that may go, in ascending (layer, expert)."""
    num_keys = setup.num_layers * setup.num_experts
    links = new_links(num_keys + setup.num_pools)
    for pool, node in initial_nodes(setup):
        push.py_func(links.view(np.int32), num_keys + pool, node)
    return links


def lengths_of_lists(setup: PolicySetup) -> np.ndarray:
    """int64 [P]: how many nodes each of ``lists_of_residents`` holds."""
    return np.bincount(np.array([pool for pool, _ in initial_nodes(setup)], np.int64), minlength=setup.num_pools)


@inlined
def older(links, node):
    return np.int64(links[at(2 * node)])


@inlined
def newer(links, node):
    return np.int64(links[at(2 * node + 1)])


@inlined
def unlink(links, node):
    """Take a node out of its list."""
    before, after = np.int64(links[at(2 * node)]), np.int64(links[at(2 * node + 1)])
    links[at(2 * before + 1)] = after
    links[at(2 * after)] = before


@inlined
def push(links, head, node):
    """Make a node the newest of a list."""
    newest = np.int64(links[at(2 * head)])
    links[at(2 * newest + 1)] = node
    links[at(2 * node)] = newest
    links[at(2 * node + 1)] = head
    links[at(2 * head)] = node
