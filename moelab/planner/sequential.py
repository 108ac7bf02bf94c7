"""sequential: the hottest experts on the fast tiers first, then nodes and copies of all others.  Floor 3.

The usual way on the budgets of ``joint``: what fast tiers hold is chosen by uses alone, as if nodes did not matter, and
then kept, while the rest is placed by the annealing that ``joint`` has. So what ``joint`` gains over it is worth of
choosing both together, and of the two more searches that it makes. Does not know what else could lie on a fast tier.
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
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import NodeProblem, node_problem
from moelab.planner.replica_gains import add_replicas

MOST_VISITS = 4_000_000_000
"""As in ``anneal``."""

MOST_STEPS = 8_000


def sequential(
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
    masks = balanced_around(
        problem, steps, hottest_first(problem, slots), moves_per_expert=moves_per_expert, seed=anneal_seed
    )  # fmt: skip
    homes = rehoused(problem, masks)
    return node_plan(
        problem, masks, "sequential", seconds=time.perf_counter() - begin, homes=homes, score=score,
        parameters={"fast_slots": slots, "moves_per_expert": moves_per_expert, "anneal_seed": anneal_seed},
        notes={"hit_rate_per_request": hit_rate(problem, masks)},
    )  # fmt: skip


def slots_of(fast_slots: int | Sequence[int], trace: Trace) -> list[int]:
    """Slots of each fast tier; raises ``ValueError`` where they are none, negative or more than the experts."""
    slots = [int(fast_slots)] if isinstance(fast_slots, int | np.integer) else [int(each) for each in fast_slots]
    num_experts = trace.header.num_layers * trace.header.num_experts
    if not slots or min(slots) < 0 or sum(slots) > num_experts:
        raise ValueError(f"fast_slots are {slots}, expected one or more numbers, in sum at most {num_experts}")
    return slots


def balanced_around(
    problem: NodeProblem, steps: LayerSteps, masks: np.ndarray, *, moves_per_expert: float, seed: int
) -> np.ndarray:
    """``masks`` int64 [L, E] annealed on ``steps``, fast tiers as they are."""
    room = problem.room(masks, rehoused(problem, masks))
    return annealed(
        problem, steps, masks, room=room, moves_per_expert=moves_per_expert, seed=seed, keeps_fast=True
    )  # fmt: skip


def hottest_first(problem: NodeProblem, slots: Sequence[int]) -> np.ndarray:
    """int64 [L, E]: the most used experts of all layers fill the fast tiers in turn, the rest is ``replicate``'s."""
    order = np.argsort(-problem.train.uses.ravel(), kind="stable")[: sum(slots)]
    masks = np.zeros(problem.shape, np.int64)
    for fast, chosen in enumerate(np.split(order, np.cumsum(slots)[:-1])):
        masks.flat[chosen] = 1 << problem.num_nodes + fast
    on_fast = masks > 0
    rest = np.where(on_fast, 0, problem.train.uses)
    node = balanced_packing(rest, problem.num_nodes, rates=problem.node_rates, share=problem.node_share)
    masks = np.where(on_fast, masks, 1 << node)
    return add_replicas(problem, masks, problem.room(masks, np.where(on_fast & problem.keep_home, 1 << node, 0)))


def hit_rate(problem: NodeProblem, masks: np.ndarray) -> float:
    """Distinct uses that a fast tier serves, of the held-out layer-steps."""
    on_fast = (masks >> problem.num_nodes > 0).ravel()
    return float(on_fast[problem.test.keys].mean())
