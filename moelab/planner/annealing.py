"""annealing: how long and how hot ``anneal_moves`` runs on a problem.  Floor 3.

Temperatures fall geometrically in units of the square root of an expert's mean number of uses, which is about how much
chance alone moves the gain of a swap on another sample of as many steps: below it a search learns the planning steps by
heart. Does not know where the placement comes from.
"""

from __future__ import annotations

import numpy as np

from moelab.planner.anneal_moves import anneal_moves
from moelab.planner.distinct_steps import distinct_steps
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import NodeProblem
from moelab.planner.packed_counts import field_bits, hall_tables
from moelab.planner.step_maximum import scratch_arrays

COLD = 0.1
"""Last temperature, in square roots of an expert's mean number of uses; the very last sweep takes no loss at all."""

MOVES_OF_HEAT, HEAT = 500, (0.5, 4.0)
"""The first temperature rises with the moves: with few of them heat only destroys the start (``docs/log.md``)."""


def annealed(
    problem: NodeProblem,
    steps: LayerSteps,
    masks: np.ndarray,
    *,
    moves_per_expert: float,
    room: np.ndarray | None = None,
    sweeps: int = 40,
    hot: float | None = None,
    cold: float = COLD,
    seed: int = 0,
    only_layer: int | None = None,
    worth: float = 0.0,
    keeps_fast: bool = False,
) -> np.ndarray:
    """``masks`` int64 [L, E] after about ``moves_per_expert`` tries for each expert in all sweeps, never worse.

    ``worth`` of a copy for each use of its expert, in experts: 0 is the objective alone. ``room`` int64 [N]: bytes that
    the tiers have left (default: what the budgets leave). ``only_layer``: no other layer changes. ``keeps_fast``:
    the fast tiers keep the experts that they hold.
    """
    num_layers, num_experts = problem.shape
    layers = (0, num_layers) if only_layer is None else (only_layer, only_layer + 1)
    times = problem.times
    uses_per_expert = steps.uses[steps.uses > 0].mean() if steps.uses.any() else 1.0
    first = float(np.clip(moves_per_expert / MOVES_OF_HEAT, *HEAT)) if hot is None else hot
    temperatures = np.sqrt(uses_per_expert) * np.geomspace(first, cold, sweeps)
    temperatures[-1] = 1e-9
    code = np.ascontiguousarray(masks, np.int64).ravel().copy()
    num_uses = steps.uses.ravel().astype(np.float64)
    steps, often = distinct_steps(steps)
    first_use, uses = steps.inverted
    longest = 2 * int(steps.uses.max(initial=1))
    field = field_bits(masks, times, int(steps.sizes.max(initial=1)))
    free = np.array(problem.room(masks) if room is None else room, np.int64)
    change = anneal_moves(
        steps.offsets, steps.keys, first_use, uses, often, num_uses, (*layers, num_experts), problem.num_nodes, code,
        free, problem.tier_bytes, times.piece_sizes, times.slowness, times.barrier, problem.layer_weight, worth,
        keeps_fast, temperatures,
        max(1, round(moves_per_expert * num_experts / sweeps)), np.array([seed], np.uint64), field,
        *hall_tables(times.num_tiers, field),
        np.empty(steps.num_layer_steps, np.int64), np.empty(steps.num_layer_steps), np.empty(longest, np.int32),
        np.empty(longest), *scratch_arrays(steps, times.num_tiers),
    )  # fmt: skip
    return code.reshape(masks.shape) if change <= 0 else masks
