"""room_repair: a placement brought back into the budgets of the nodes.  Floor 3.

A cut expert leaves its node and lies a bit on each, so nodes whose experts were cut seldom become too full; and where
layers differ in expert bytes, equal numbers are not equal bytes. The coldest experts with one copy move to the node
with most room; where half an expert is left over, the coldest cut becomes whole again. Does not know gains.
"""

from __future__ import annotations

import numpy as np

from moelab.planner.node_problem import NodeProblem
from moelab.planner.step_maximum import CUT


def repaired(problem: NodeProblem, masks: np.ndarray) -> np.ndarray:
    """``masks`` int64 [L, E] that fit; raises ``ValueError`` where even whole experts alone would not."""
    masks = masks.copy()
    uses, nodes = problem.train.uses, problem.num_nodes
    while True:
        room = problem.room(masks)[:nodes]
        if (room >= 0).all():
            return masks
        full, free = int(np.argmin(room)), int(np.argmax(room))
        fits = problem.tier_bytes[free][:, None] <= room[free]
        single = (masks == 1 << full) & fits
        candidates, target = (single, 1 << free) if single.any() else (masks == CUT, 1 << free)
        if not candidates.any():
            raise ValueError(f"nodes have {room.tolist()} bytes left, expected 0 or more: give more extra_memory")
        coldest = int(np.argmin(np.where(candidates, uses, np.iinfo(np.int64).max)))
        masks.flat[coldest] = target
