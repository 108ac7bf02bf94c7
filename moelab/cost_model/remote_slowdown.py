"""remote_slowdown: what reading from the memories of all nodes in turn costs over reading from the own.  Floor 1.

From measured remote read rates alone. Does not know plans.
"""

from __future__ import annotations

from moelab.domain.machine import Machine


def remote_slowdown(machine: Machine | None, num_nodes: int) -> float | None:
    """Time of reading 1 / N from each node over reading all from the own; ``None`` where a rate is not measured.

    Of the slowest node; reads of different nodes follow one another in a thread, so times add up.
    """
    if machine is None or num_nodes > len(machine.nodes):
        return None
    worst = 0.0
    for node in machine.nodes[:num_nodes]:
        local = node.best_read_gb_per_s
        remote = [node.remote_read_gb_per_s.get(other.name) for other in machine.nodes[:num_nodes] if other is not node]
        if not local or not all(remote):
            return None
        worst = max(worst, (1 + sum(local / rate for rate in remote if rate)) / num_nodes)
    return worst
