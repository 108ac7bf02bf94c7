"""eplb_rebalance: DeepSeek's expert-parallel load balancer: copies by load, packed evenly.  Floor 3.

Reference: deepseek-ai/EPLB (2025), its description and example; written anew here. Copies go one by one to the expert
with the highest load per copy; copies are packed heaviest first into the pack of least load with room for one more, all
packs of one size. Hierarchical where groups divide over nodes: groups to nodes, copies within a node, then to its GPUs.
It balances average loads; two copies of an expert may fall on one pack, where the second is of no use.
"""

from __future__ import annotations

import numpy as np


def packed_masks(loads: np.ndarray, num_nodes: int, extra_memory: float) -> tuple[np.ndarray, int]:
    """(masks int64 [L, E], copies per layer) for NUMA nodes: a GPU is a node, there is one group.

    ``extra_memory`` becomes redundant copies, as many in each layer, rounded down so that they divide over the nodes.
    Raises ``ValueError`` where the experts do not divide.
    """
    num_layers, num_experts = loads.shape
    if num_experts % num_nodes:
        raise ValueError(f"eplb packs equal numbers: {num_experts} experts do not divide over {num_nodes} nodes")
    copies = num_experts + int(extra_memory * num_experts + 1e-9) // num_nodes * num_nodes
    expert_of_copy = rebalance(loads, copies, num_groups=1, num_nodes=1, num_gpus=num_nodes)
    masks = np.zeros(loads.shape, np.int64)
    node = np.arange(copies) // (copies // num_nodes)
    np.bitwise_or.at(masks, (np.arange(num_layers)[:, None], expert_of_copy), 1 << node)
    return masks, copies


def rebalance(loads: np.ndarray, num_copies: int, *, num_groups: int, num_nodes: int, num_gpus: int) -> np.ndarray:
    """int64 [L, num_copies]: the expert of every copy, GPU by GPU, from ``loads`` [L, E].

    ``num_copies`` is a multiple of ``num_gpus``, E of ``num_groups``, ``num_gpus`` of ``num_nodes``; where
    ``num_groups`` is no multiple of ``num_nodes`` everything is one node of one group.
    """
    if num_groups % num_nodes:
        num_groups, num_nodes = 1, 1
    return np.stack([_rebalance_layer(row, num_copies, num_groups, num_nodes, num_gpus) for row in loads])


def _rebalance_layer(loads: np.ndarray, num_copies: int, num_groups: int, num_nodes: int, num_gpus: int) -> np.ndarray:
    group_size, node_copies, node_gpus = len(loads) // num_groups, num_copies // num_nodes, num_gpus // num_nodes
    node_of_group, _ = _pack(loads.reshape(num_groups, group_size).sum(1), num_nodes)
    out = []
    for node in range(num_nodes):
        groups = np.flatnonzero(node_of_group == node)
        groups = groups[np.argsort(_pack_rank(loads.reshape(num_groups, group_size).sum(1), num_nodes)[groups])]
        experts = (groups[:, None] * group_size + np.arange(group_size)).ravel()
        expert_of_copy, count = _replicate(loads[experts], node_copies)
        gpu, rank = _pack(loads[experts][expert_of_copy] / count[expert_of_copy], node_gpus)
        place = np.empty(node_copies, np.int64)
        place[gpu * (node_copies // node_gpus) + rank] = np.arange(node_copies)
        out.append(experts[expert_of_copy[place]])
    return np.concatenate(out)


def _pack(loads: np.ndarray, num_packs: int) -> tuple[np.ndarray, np.ndarray]:
    """(pack, rank within it) of every item: heaviest first, to the lightest pack with room; equal numbers."""
    size = len(loads) // num_packs
    pack, rank = np.zeros(len(loads), np.int64), np.zeros(len(loads), np.int64)
    if size == 1:
        return np.arange(len(loads)), rank
    total, count = np.zeros(num_packs), np.zeros(num_packs, np.int64)
    for item in np.argsort(-loads, kind="stable"):
        to = int(np.argmin(np.where(count < size, total, np.inf)))
        pack[item], rank[item] = to, count[to]
        total[to] += loads[item]
        count[to] += 1
    return pack, rank


def _pack_rank(loads: np.ndarray, num_packs: int) -> np.ndarray:
    return _pack(loads, num_packs)[1]


def _replicate(loads: np.ndarray, num_copies: int) -> tuple[np.ndarray, np.ndarray]:
    """(expert of every copy, copies of every expert): each further copy to the highest load per copy."""
    count = np.ones(len(loads), np.int64)
    expert_of_copy = np.arange(num_copies)
    for copy in range(len(loads), num_copies):
        expert_of_copy[copy] = int(np.argmax(loads / count))
        count[expert_of_copy[copy]] += 1
    return expert_of_copy, count
