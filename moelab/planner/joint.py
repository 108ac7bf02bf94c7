"""joint: the experts of the fast tiers and the nodes of all others, found together.  Floor 3.

What a fast tier serves no longer evens out the nodes: the fewer experts a step leaves to them, the larger the share of
the fullest (one expert of two nodes wastes half). So three searches swap places on fast tiers, copies and nodes
together, and the best stays: from what ``sequential`` finds on the same budgets, so that the result is never worse on
the steps that are annealed; from the hottest first, before anything is annealed around them; and from experts promoted
by what that takes off the maximum over all tiers (``replica_gains``). Beside the result stand ``sequential``, whose
annealing is the same, and its own start, the hottest first. Takes three times as long as ``sequential``.

Any number of fast tiers; their own time counts where their rates are known. ``keep_home``: experts on fast tiers keep
a copy on a node, which is not read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.anneal import at_most, moves_within
from moelab.planner.annealing import annealed
from moelab.planner.balanced_packing import balanced_packing
from moelab.planner.homes import rehoused
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import NodeProblem, node_problem
from moelab.planner.node_score import node_score
from moelab.planner.replica_gains import add_replicas, promote_to_fast
from moelab.planner.sequential import MOST_STEPS, MOST_VISITS, balanced_around, hit_rate, hottest_first, slots_of


def joint(
    trace: Trace,
    *,
    fast_slots: int | Sequence[int],
    moves_per_expert: float | None = None,
    most_steps: int = MOST_STEPS,
    anneal_seed: int = 0,
    score: bool = True,
    **options: Any,
) -> Plan:
    """Plan with ``fast_slots`` experts of all layers together on each fast tier; ``options``: of ``node_problem``."""
    slots = slots_of(fast_slots, trace)
    problem = node_problem(trace, fast_slots=slots, **options)
    begin = time.perf_counter()
    steps = at_most(problem.train, most_steps, anneal_seed)
    if moves_per_expert is None:
        moves_per_expert = moves_within(problem, steps, MOST_VISITS)
    hottest = hottest_first(problem, slots)
    usual = balanced_around(problem, steps, hottest, moves_per_expert=moves_per_expert, seed=anneal_seed)
    found = []
    for start, share in ((usual, 1), (hottest, 0.5), (_promoted(problem), 0.5)):
        room = problem.room(start, rehoused(problem, start))
        masks = annealed(problem, steps, start, room=room, moves_per_expert=share * moves_per_expert, seed=anneal_seed)
        found.append((node_score(steps, masks, problem.times, problem.layer_weight).mean, masks))
    masks = min(found, key=lambda one: one[0])[1]
    homes = rehoused(problem, masks)
    seconds = time.perf_counter() - begin
    return node_plan(
        problem, masks, "joint", seconds=seconds, homes=homes, score=score,
        parameters={"fast_slots": slots, "moves_per_expert": moves_per_expert, "anneal_seed": anneal_seed},
        notes={
            "hit_rate_per_request": hit_rate(problem, masks), "hottest_first_hit_rate": hit_rate(problem, hottest),
            **_beside(problem, "hottest_first", hottest), **_beside(problem, "sequential", usual),
        },
    )  # fmt: skip


def _balanced(problem: NodeProblem) -> np.ndarray:
    return 1 << balanced_packing(
        problem.train.uses, problem.num_nodes, rates=problem.node_rates, share=problem.node_share
    )  # fmt: skip


def _promoted(problem: NodeProblem) -> np.ndarray:
    """Balanced nodes, the experts that gain most on the fast tiers, then copies in what is left of the nodes."""
    start = _balanced(problem)
    masks = promote_to_fast(problem, start, problem.room(start))
    return add_replicas(problem, masks, problem.room(masks, rehoused(problem, masks)))


def _beside(problem: NodeProblem, name: str, masks: np.ndarray) -> dict[str, float]:
    """What another way is worth on the same budgets, held out and on the planning steps."""
    on_test, on_train = (
        node_score(part, masks, problem.times, problem.layer_weight) for part in (problem.test, problem.train)
    )
    return {f"{name}_mean_max": on_test.mean, f"{name}_train_mean_max": on_train.mean}
