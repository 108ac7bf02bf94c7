"""homes: a node for the home copy of every expert on a fast tier.  Floor 3.

Homes are not read while a fast tier serves the expert, so they go where memory is left. Does not know who serves what,
or why.
"""

from __future__ import annotations

import numpy as np

from moelab.planner.node_problem import NodeProblem


def rehoused(problem: NodeProblem, masks: np.ndarray) -> np.ndarray:
    """int64 [L, E]: the home (one bit) of every expert that ``masks`` [L, E] has on a fast tier, 0 for the others.

    The largest first, on the node with most room left; none where the problem keeps no homes.
    Where layers differ in expert bytes one node may end a little too full; then homes on it change places with smaller
    ones on another, as long as that helps.
    """
    homes = np.zeros_like(masks)
    if not problem.keep_home:
        return homes
    room = problem.room(masks)[: problem.num_nodes]
    placed = np.argwhere(masks >> problem.num_nodes > 0)
    sizes = problem.tier_bytes[0][placed[:, 0]]
    node_of = np.zeros(len(placed), np.int64)
    for index in np.argsort(-sizes, kind="stable"):
        node_of[index] = np.argmax(room)
        room[node_of[index]] -= sizes[index]
    while (room < 0).any():
        full, free = int(np.argmin(room)), int(np.argmax(room))
        mine, theirs = np.unique(sizes[node_of == full]), np.unique(sizes[node_of == free])
        steps = (mine[:, None] - theirs).astype(np.int64)
        useful = (steps > 0) & (steps <= room[free])
        if not useful.any():
            break
        larger, smaller = np.unravel_index(np.argmax(np.where(useful, steps, 0)), steps.shape)
        node_of[np.flatnonzero((node_of == full) & (sizes == mine[larger]))[0]] = free
        node_of[np.flatnonzero((node_of == free) & (sizes == theirs[smaller]))[0]] = full
        room[full] += steps[larger, smaller]
        room[free] -= steps[larger, smaller]
    homes[placed[:, 0], placed[:, 1]] = 1 << node_of
    return homes
