"""anneal: nodes and replicas by simulated annealing of the objective itself.  Floor 3.

The mean over steps of the maximum over nodes, every replica chosen as ``dispatch`` will choose it, is what the moves
are judged by (``anneal_moves``); copies move between experts and layers, so that partition, replicas and their
water-filling over layers are one search. Start: ``coact``, nearly as good where a layer has hundreds of experts.
Planning steps beyond ``most_steps`` in a layer are drawn and the moves follow from ``most_visits``, so that the time is
bounded: about a minute on one core at K2's shape.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.annealing import annealed
from moelab.planner.coactivation_split import split_by_coactivation
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import NodeProblem, node_problem
from moelab.planner.packed_counts import NOT_PACKED, field_bits
from moelab.planner.replica_gains import add_replicas
from moelab.planner.room_repair import repaired

MOST_MOVES = 2000
"""Tries for each expert, where the visits allow them; four times as many gain in sample alone (``docs/log.md``)."""

MOST_VISITS = 4_000_000_000
"""Layer-steps that are looked at in all, some nanoseconds each on two nodes (see ``moves_within`` for more); those
that repeat others count here and cost nothing (``distinct_steps``), so time may be far less."""

WORTH = 0.01
"""Of a copy for each use of its expert, in experts: where planning steps are few, many placements of copies are perfect
on them, and those on the hottest experts carry over (``docs/log.md``)."""

MOST_STEPS = 16_000
SHRINK = 0.5


def anneal(
    trace: Trace,
    *,
    moves_per_expert: float | None = None,
    most_visits: int | None = None,
    most_steps: int = MOST_STEPS,
    worth: float = WORTH,
    anneal_seed: int = 0,
    score: bool = True,
    **options: Any,
) -> Plan:
    """Plan by annealing; ``options``: those of ``node_problem``.

    ``moves_per_expert`` instead of what ``most_visits`` (default: ``MOST_VISITS``) allows.
    """
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    masks, moves_per_expert = annealed_masks(
        problem, moves_per_expert=moves_per_expert, most_visits=most_visits or MOST_VISITS, most_steps=most_steps,
        worth=worth, anneal_seed=anneal_seed,
    )  # fmt: skip
    return node_plan(
        problem, masks, "anneal", seconds=time.perf_counter() - begin, score=score,
        parameters={
            "moves_per_expert": moves_per_expert, "most_steps": most_steps, "worth": worth, "anneal_seed": anneal_seed,
        },
    )  # fmt: skip


def annealed_masks(
    problem: NodeProblem,
    *,
    moves_per_expert: float | None = None,
    most_visits: int = MOST_VISITS,
    most_steps: int = MOST_STEPS,
    worth: float = WORTH,
    anneal_seed: int = 0,
) -> tuple[np.ndarray, float]:
    """(masks int64 [L, E] annealed from ``coact``'s with a fixed shrinking, moves for each expert)."""
    steps = at_most(problem.train, most_steps, anneal_seed)
    masks = repaired(problem, 1 << split_by_coactivation(problem, problem.train, SHRINK))
    masks = add_replicas(problem, masks, problem.room(masks))
    if moves_per_expert is None:
        moves_per_expert = moves_within(problem, steps, most_visits)
    masks = annealed(problem, steps, masks, moves_per_expert=moves_per_expert, seed=anneal_seed, worth=worth)
    return masks, moves_per_expert


def moves_within(problem: NodeProblem, steps: LayerSteps, most_visits: int) -> float:
    """Moves for each expert that look at ``most_visits`` layer-steps: a move at those of two experts.

    A third of that where more than two nodes keep packed counts, a tenth where each visit asks ``dispatch``.
    """
    is_packed = field_bits(np.ones(1), problem.times, int(steps.sizes.max(initial=1))) != NOT_PACKED
    visits = most_visits if len(problem.tiers) == 2 else most_visits / (3 if is_packed else 10)
    return float(min(MOST_MOVES, visits / max(1, 2 * steps.uses.sum())))


def at_most(steps: LayerSteps, most: int, seed: int) -> LayerSteps:
    """``steps`` with at most ``most`` layer-steps in each layer, drawn with ``seed`` where there are more."""
    per_layer = np.bincount(steps.layer, minlength=steps.num_layers)
    if per_layer.max() <= most:
        return steps
    rng = np.random.default_rng(seed)
    first = np.concatenate([[0], np.cumsum(per_layer)])
    chosen = [first[layer] + np.sort(rng.permutation(count)[:most]) for layer, count in enumerate(per_layer.tolist())]
    return steps.take(np.concatenate(chosen))
