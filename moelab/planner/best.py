"""best: the planner of whole experts that does best on planning requests it has not seen.  Floor 3.

Each candidate plans on two thirds of the planning requests and is judged on the last third (``inner_split``); the
winner plans again on all of them. So the choice has seen nothing of the held-out requests, whose score is that of one
procedure, choice included, and not the best of several scores. Differences that the judging third cannot tell apart are
decided by its luck: the means of all candidates stand in the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.anneal import MOST_VISITS, annealed_masks
from moelab.planner.coact import coact_masks
from moelab.planner.inner_split import choose_by_inner_split
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.replicate import balanced_with_replicas

JUDGED_SHARE = 0.25
"""Of the annealing's time while candidates are judged: the choice costs little, and favours the others if any."""

MASKS_OF: dict[str, Callable[..., np.ndarray]] = {
    "anneal": lambda problem, **options: annealed_masks(problem, **options)[0],
    "coact": lambda problem, **_: coact_masks(problem)[0],
    "replicate": lambda problem, **_: balanced_with_replicas(problem),
}


def best(
    trace: Trace,
    *,
    candidates: Sequence[str] = tuple(MASKS_OF),
    moves_per_expert: float | None = None,
    most_visits: int = MOST_VISITS,
    anneal_seed: int = 0,
    score: bool = True,
    **options: Any,
) -> Plan:
    """Plan of the winner of ``candidates``; ``options``: those of ``node_problem``.

    ``moves_per_expert``, ``most_visits``, ``anneal_seed``: of annealing. Raises ``ValueError`` for a candidate that is
    not one.
    """
    if not candidates or set(candidates) - set(MASKS_OF):
        raise ValueError(f"candidates are {list(candidates)}, expected some of {', '.join(MASKS_OF)}")
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    judged_visits = round(JUDGED_SHARE * most_visits)
    shared = {"moves_per_expert": moves_per_expert, "anneal_seed": anneal_seed}
    name, means = choose_by_inner_split(
        problem, candidates,
        lambda steps, name: MASKS_OF[name](replace(problem, train=steps), most_visits=judged_visits, **shared),
    )  # fmt: skip
    masks = MASKS_OF[name](problem, most_visits=most_visits, **shared)
    return node_plan(
        problem, masks, "best", seconds=time.perf_counter() - begin, score=score,
        parameters={"chosen": name, "judged_mean_max": means, "anneal_seed": anneal_seed},
    )  # fmt: skip
