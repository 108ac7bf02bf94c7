"""annealing: how long and how hot ``anneal_moves`` runs on a problem.  Floor 3.

Temperatures fall geometrically in units of the square root of an expert's mean number of uses, which is about how much
chance alone moves the gain of a swap on another sample of as many steps: below it a search learns the planning steps by
heart. Does not know where the placement comes from.
"""

from __future__ import annotations

import numpy as np

from moelab.planner.anneal_moves import anneal_moves
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import NodeProblem
from moelab.planner.step_maximum import scratch_arrays

HOT, COLD = 4.0, 0.15
"""First and last temperature, in square roots of an expert's mean number of uses."""


def annealed(
    problem: NodeProblem,
    steps: LayerSteps,
    masks: np.ndarray,
    *,
    moves_per_expert: float,
    room: np.ndarray | None = None,
    sweeps: int = 40,
    hot: float = HOT,
    cold: float = COLD,
    seed: int = 0,
    only_layer: int | None = None,
) -> np.ndarray:
    """``masks`` int64 [L, E] after about ``moves_per_expert`` tries for each expert in all sweeps; last one greedy.

    ``room`` int64 [N]: bytes that the tiers have left (default: what the budgets leave). ``only_layer``: no other layer
    changes.
    """
    num_layers, num_experts = problem.shape
    layers = (0, num_layers) if only_layer is None else (only_layer, only_layer + 1)
    times = problem.times
    uses_per_expert = steps.uses[steps.uses > 0].mean() if steps.uses.any() else 1.0
    temperatures = np.sqrt(uses_per_expert) * np.geomspace(hot, cold, sweeps)
    temperatures[-1] = 1e-9
    code = np.ascontiguousarray(masks, np.int64).ravel().copy()
    first_use, uses = steps.inverted
    longest = 2 * int(steps.uses.max(initial=1))
    free = np.array(problem.room(masks) if room is None else room, np.int64)
    anneal_moves(
        steps.offsets, steps.keys, first_use, uses, (*layers, num_experts), problem.num_nodes, code, free,
        problem.tier_bytes, times.piece_sizes, times.slowness, times.barrier, problem.layer_weight, temperatures,
        max(1, round(moves_per_expert * num_experts / sweeps)), seed, np.empty(steps.num_layer_steps, np.int64),
        np.empty(steps.num_layer_steps), np.empty(longest, np.int32), np.empty(longest), *scratch_arrays(steps, times.num_tiers),
    )  # fmt: skip
    return code.reshape(masks.shape)
