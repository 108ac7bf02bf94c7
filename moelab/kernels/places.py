"""Where workers sit: one for each physical core that this process may use, grouped by NUMA node.

Which cores those are: ``domain.allowed_cores``. ``virtual_nodes`` divides the cores of one real node, to try placements
on a machine that has no second one. Floor 1: the standard library and ``domain.allowed_cores``.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from moelab.domain.allowed_cores import SYSTEM, allowed_cores, node_of_core


@dataclass(frozen=True)
class Place:
    """Core (number of the operating system) and node (0, 1, ..: those that have a place, renumbered).

    ``memory_node`` is the operating system's number of that node, for binding memory to it.
    """

    core: int
    node: int
    memory_node: int = field(default=0, compare=False)


def places(num_workers: int | None = None, virtual_nodes: int | None = None, system: Path = SYSTEM) -> list[Place]:
    """One place per worker, worker 0 first; at most ``num_workers``, taken from the nodes in turn.

    Raises ``ValueError`` for fewer than 1 worker, or more virtual nodes than cores or workers.
    """
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers: expected 1 or more; got {num_workers}")
    cores = allowed_cores(system)
    by_node: dict[int, list[int]] = {}
    for core in cores:
        by_node.setdefault(node_of_core(core, system), []).append(core)
    groups = [by_node[node] for node in sorted(by_node)]
    if virtual_nodes is not None:
        flat = [core for group in groups for core in group]
        if not 1 <= virtual_nodes <= len(flat):
            raise ValueError(f"virtual_nodes: expected 1 to {len(flat)} (one core each); got {virtual_nodes}")
        if num_workers is not None and num_workers < virtual_nodes:
            raise ValueError(f"virtual_nodes: expected at most num_workers, {num_workers}; got {virtual_nodes}")
        bounds = [len(flat) * n // virtual_nodes for n in range(virtual_nodes + 1)]
        groups = [flat[start:stop] for start, stop in pairwise(bounds)]
    wanted = min(num_workers or len(cores), len(cores))
    chosen: list[list[int]] = [[] for _ in groups]
    while sum(map(len, chosen)) < wanted:
        for group, taken in zip(groups, chosen, strict=True):
            if len(taken) < len(group) and sum(map(len, chosen)) < wanted:
                taken.append(group[len(taken)])
    filled = [taken for taken in chosen if taken]
    return [Place(core, node, node_of_core(core, system)) for node, taken in enumerate(filled) for core in taken]


def caller_core() -> int | None:
    """The core that this thread runs on now; ``None`` where nobody says (not Linux)."""
    try:
        core = int(ctypes.CDLL(None).sched_getcpu())
    except (AttributeError, OSError, TypeError):
        return None
    return core if core >= 0 else None
