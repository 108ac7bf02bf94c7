"""machine_of_nodes: a machine with as many nodes as the settings ask for.  Floor 4.

Fewer: its first nodes. More: every node divided evenly, cores, memory and read rate, and marked ``virtual``: what a
placement over more nodes would be worth there, not a claim that the machine has them.
"""

from __future__ import annotations

from moelab.domain.machine import Machine, NumaNode


def machine_of_nodes(machine: Machine, num_nodes: int) -> Machine:
    """Raises ``ValueError`` where more nodes are asked for that the machine's do not divide into."""
    have = len(machine.nodes)
    if num_nodes <= have:
        return machine if num_nodes == have else machine.model_copy(update={"nodes": machine.nodes[:num_nodes]})
    if num_nodes % have:
        raise ValueError(
            f"{num_nodes} nodes on {machine.name}, which has {have}: expected up to {have}, or a multiple of it "
            "(each then counts as divided)"
        )
    parts = num_nodes // have
    nodes = [
        _part(node, part, parts, have * part + at) for part in range(parts) for at, node in enumerate(machine.nodes)
    ]
    return machine.model_copy(update={"nodes": tuple(nodes), "virtual": True})


def _part(node: NumaNode, part: int, parts: int, number: int) -> NumaNode:
    return NumaNode(
        name=f"node{number}",
        cores=node.cores[part::parts],
        memory_bytes=node.memory_bytes // parts,
        read_gb_per_s={threads: rate / parts for threads, rate in node.read_gb_per_s.items()},
    )
