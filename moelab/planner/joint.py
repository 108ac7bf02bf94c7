"""joint: the experts of the fast tiers and the nodes of all others, found together.  Floor 3.

What a fast tier serves no longer evens out the nodes: the fewer experts a step leaves to them, the larger the share of
the fullest (one expert of two nodes wastes half). So experts are promoted by what that takes off the maximum over all
tiers and not by hits alone (``replica_gains``), spare node memory is spent on the rest, and annealing then swaps places
on fast tiers, copies and nodes in one search. The usual way on the same budgets, the hottest experts on the fast tier,
then nodes balanced and replicated for the rest, is a second start, and stands beside the result.

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
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import NodeProblem, node_problem
from moelab.planner.node_score import node_score
from moelab.planner.replica_gains import add_replicas, promote_to_fast

MOST_VISITS = 4_000_000_000
"""As in ``anneal``."""

MOST_STEPS = 8_000


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
    slots = [int(fast_slots)] if isinstance(fast_slots, int | np.integer) else [int(each) for each in fast_slots]
    num_experts = trace.header.num_layers * trace.header.num_experts
    if not slots or min(slots) < 0 or sum(slots) > num_experts:
        raise ValueError(f"fast_slots are {slots}, expected one or more numbers, in sum at most {num_experts}")
    problem = node_problem(trace, fast_slots=slots, **options)
    begin = time.perf_counter()
    steps = at_most(problem.train, most_steps, anneal_seed)
    usual = hottest_first(problem, slots)
    if moves_per_expert is None:
        moves_per_expert = moves_within(problem, steps, MOST_VISITS)
    found = []
    for start in (_promoted(problem), usual):
        room = problem.room(start, _rehoused(problem, start))
        masks = annealed(problem, steps, start, room=room, moves_per_expert=moves_per_expert / 2, seed=anneal_seed)
        found.append((node_score(steps, masks, problem.times, problem.layer_weight).mean, masks))
    masks = min(found, key=lambda one: one[0])[1]
    homes = _rehoused(problem, masks)
    seconds = time.perf_counter() - begin
    return node_plan(
        problem, masks, "joint", seconds=seconds, homes=homes, score=score,
        parameters={"fast_slots": slots, "moves_per_expert": moves_per_expert, "anneal_seed": anneal_seed},
        notes={
            "hottest_first_mean_max": node_score(problem.test, usual, problem.times, problem.layer_weight).mean,
            "hottest_first_train_mean_max": node_score(problem.train, usual, problem.times, problem.layer_weight).mean,
            "hit_rate_per_request": _hit_rate(problem, masks), "hottest_first_hit_rate": _hit_rate(problem, usual),
        },
    )  # fmt: skip


def hottest_first(problem: NodeProblem, slots: Sequence[int]) -> np.ndarray:
    """int64 [L, E]: the most used experts of all layers fill the fast tiers in turn, the rest is ``replicate``'s."""
    start = _balanced(problem)
    masks = start.copy()
    order = np.argsort(-problem.train.uses.ravel(), kind="stable")[: sum(slots)]
    for fast, chosen in enumerate(np.split(order, np.cumsum(slots)[:-1])):
        masks.flat[chosen] = 1 << problem.num_nodes + fast
    on_fast = masks >> problem.num_nodes > 0
    rest = np.where(on_fast, 0, problem.train.uses)
    node = balanced_packing(rest, problem.num_nodes, rates=problem.node_rates, share=problem.node_share)
    masks = np.where(on_fast, masks, 1 << node)
    return add_replicas(problem, masks, problem.room(masks, np.where(on_fast & problem.keep_home, 1 << node, 0)))


def _balanced(problem: NodeProblem) -> np.ndarray:
    return 1 << balanced_packing(
        problem.train.uses, problem.num_nodes, rates=problem.node_rates, share=problem.node_share
    )  # fmt: skip


def _promoted(problem: NodeProblem) -> np.ndarray:
    """Balanced nodes, the experts that gain most on the fast tiers, then copies in what is left of the nodes."""
    start = _balanced(problem)
    masks = promote_to_fast(problem, start, problem.room(start))
    return add_replicas(problem, masks, problem.room(masks, _rehoused(problem, masks)))


def _rehoused(problem: NodeProblem, masks: np.ndarray) -> np.ndarray:
    """A home for every expert on a fast tier: the largest first, on the node with most room left.

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


def _hit_rate(problem: NodeProblem, masks: np.ndarray) -> float:
    """Distinct uses that a fast tier serves, of the held-out layer-steps."""
    on_fast = (masks >> problem.num_nodes > 0).ravel()
    return float(on_fast[problem.test.keys].mean())
