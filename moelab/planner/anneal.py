"""anneal: nodes and replicas by simulated annealing of the objective itself.  Floor 3.

The mean over steps of the maximum over nodes, every replica chosen as ``dispatch`` will choose it, is what the moves
are judged by (``anneal_moves``); copies move between experts and layers, so that partition, replicas and their
water-filling over layers are one search. Start: ``replicate``. Planning steps beyond ``most_steps`` in a layer are
drawn, so that the time is bounded.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.annealing import annealed
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.replicate import balanced_with_replicas

MOVES_PER_EXPERT = 1000
MOST_STEPS = 30_000


def anneal(
    trace: Trace,
    *,
    moves_per_expert: float = MOVES_PER_EXPERT,
    most_steps: int = MOST_STEPS,
    anneal_seed: int = 0,
    score: bool = True,
    **options: Any,
) -> Plan:
    """Plan by annealing; ``options``: those of ``node_problem``."""
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    steps = at_most(problem.train, most_steps, anneal_seed)
    start = balanced_with_replicas(problem)
    masks = annealed(problem, steps, start, moves_per_expert=moves_per_expert, seed=anneal_seed)
    return node_plan(
        problem, masks, "anneal", seconds=time.perf_counter() - begin, score=score,
        parameters={"moves_per_expert": moves_per_expert, "most_steps": most_steps, "anneal_seed": anneal_seed},
    )  # fmt: skip


def at_most(steps: LayerSteps, most: int, seed: int) -> LayerSteps:
    """``steps`` with at most ``most`` layer-steps in each layer, drawn with ``seed`` where there are more."""
    per_layer = np.bincount(steps.layer, minlength=steps.num_layers)
    if per_layer.max() <= most:
        return steps
    rng = np.random.default_rng(seed)
    first = np.concatenate([[0], np.cumsum(per_layer)])
    chosen = [first[layer] + np.sort(rng.permutation(count)[:most]) for layer, count in enumerate(per_layer.tolist())]
    return steps.take(np.concatenate(chosen))
