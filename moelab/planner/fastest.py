"""fastest: whole experts, a mixture or all of them cut, whichever the machine is predicted to run fastest.  Floor 3.

Bytes alone always favour cut experts; measured times (``moelab calibrate``) know what pieces cost and what contention
leaves of a better balance. Each candidate plans on the planning half, is predicted on it, and the least time wins; the
held-out half only scores. Does not search beyond its candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.anneal import MOST_STEPS, anneal, at_most, moves_within
from moelab.planner.coact import coact
from moelab.planner.node_plan import masks_of_plan, node_plan
from moelab.planner.node_problem import NodeProblem, node_problem
from moelab.planner.predicted_time import predicted_ms_per_step, times_for
from moelab.planner.row_split import row_split
from moelab.planner.split_some import split_some
from moelab.planner.step_maximum import CUT

CUT_SHARES = (0.1, 0.25, 0.5)


def fastest(trace: Trace, *, most_visits: int | None = None, score: bool = True, **options: Any) -> Plan:
    """The candidate of least predicted time; ``options``: those of ``node_problem``.

    ``most_visits`` bounds each annealing, as in ``anneal``.

    Raises ``ValueError`` where ``machine`` has no calibrated times of the experts' shape.
    """
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    if times_for(problem) is None:
        header = problem.header
        shape = f"{header.hidden_size}x{problem.intermediate}"
        raise ValueError(
            f"machine has no calibrated times of {shape} experts: run `moelab calibrate --expert-shape {shape}` and "
            "give its file as --machine, or take a planner that counts bytes, such as anneal"
        )
    candidates: dict[str, Callable[..., Plan]] = {"anneal": anneal, "coact": coact}
    cut_bytes = problem.used(np.full(problem.shape, CUT)) if problem.can_cut else problem.budget
    # One copy in all, but units may not divide as the rates do. Bytes that were said for a node hold, shares do not.
    fits = options.get("node_bytes") is None or bool((cut_bytes <= problem.budget).all())
    if problem.can_cut and fits:
        candidates["row_split"] = row_split
    masks, predicted = {}, {}
    for name, planner in candidates.items():
        visits: dict[str, Any] = {"most_visits": most_visits} if planner is anneal else {}
        masks[name] = masks_of_plan(planner(trace, score=False, **visits, **options))
    if problem.can_cut:
        few: dict[str, Any] = {} if most_visits is None else {"moves_per_expert": _moves(problem, most_visits)}
        for share in CUT_SHARES:
            plan = split_some(trace, cut_share=share, score=False, **few, **options)
            masks[f"split_some {share:g}"] = masks_of_plan(plan)
    for name, each in masks.items():
        predicted[name] = predicted_ms_per_step(problem, each, problem.train)
    chosen = min(predicted, key=lambda name: predicted[name] or 0.0)
    if chosen == "row_split":
        problem = replace(problem, budget=np.maximum(problem.budget, cut_bytes))
    return node_plan(
        problem, masks[chosen], "fastest", seconds=time.perf_counter() - begin, score=score,
        parameters={"chosen": chosen}, notes={"planning_ms_per_step": predicted},
    )  # fmt: skip


def _moves(problem: NodeProblem, most_visits: int) -> float:
    return moves_within(problem, at_most(problem.train, MOST_STEPS, 0), most_visits)
