"""What tests of node plans share: searches that are short, and a plan's copies read row by row."""

import numpy as np

from moelab.planner.node_plan import masks_of_plan

QUICK = {"anneal": {"moves_per_expert": 100}, "best": {"moves_per_expert": 100}, "split_some": {"moves_per_expert": 50}}


def masks_of(plan):
    """int64 [L, E] as the objective reads it, read row by row: bits of whole copies, 0 for pieces, fast alone."""
    masks = np.zeros((plan.model.num_layers, plan.model.num_experts), np.int64)
    for layer, expert, start, stop, tier in zip(*plan.placements.arrays().values(), strict=True):
        if start == 0 and stop == plan.num_units:
            masks[layer, expert] |= 1 << tier
    fast = sum(1 << index for index, tier in enumerate(plan.tiers) if tier.startswith("fast"))
    masks = np.where(masks & fast, masks & fast, masks)
    assert (masks == masks_of_plan(plan)).all()
    return masks
