"""split_some: only the experts that break the balance are cut over the nodes, the rest stays whole.  Floor 3.

Whole experts reach ceil(K / N) at best; where N does not divide K, cut ones go below. Cuts take no memory but have a
price in time that is to be measured (``cut_price``), so their number is a budget: ``cut_share`` of all experts, each
taken where it gains most (``replica_gains``), after ``replicate`` spent the extra memory; then swaps by annealing.
"""

from __future__ import annotations

import time
from typing import Any

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.anneal import MOST_STEPS, at_most, moves_within
from moelab.planner.annealing import annealed
from moelab.planner.node_plan import node_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.replica_gains import cut_experts
from moelab.planner.replicate import balanced_with_replicas
from moelab.planner.room_repair import repaired
from moelab.planner.step_maximum import CUT

CUT_SHARE = 0.25
MOST_VISITS = 1_000_000_000
"""As in ``anneal``; fewer, because cuts leave little to gain."""


def split_some(
    trace: Trace,
    *,
    cut_share: float = CUT_SHARE,
    moves_per_expert: float | None = None,
    most_steps: int = MOST_STEPS,
    anneal_seed: int = 0,
    score: bool = True,
    **options: Any,
) -> Plan:
    """Plan with up to ``cut_share`` of all experts cut; ``options``: those of ``node_problem``.

    Raises ``ValueError`` where the intermediate size is not known or has fewer units than there are nodes.
    """
    if not 0 <= cut_share <= 1:
        raise ValueError(f"cut_share is {cut_share}, expected a fraction of all experts from 0 to 1")
    problem = node_problem(trace, **options)
    begin = time.perf_counter()
    num_layers, num_experts = problem.shape
    masks = cut_experts(problem, balanced_with_replicas(problem), int(cut_share * num_layers * num_experts))
    masks = repaired(problem, masks)
    steps = at_most(problem.train, most_steps, anneal_seed)
    if moves_per_expert is None:
        moves_per_expert = moves_within(problem, steps, MOST_VISITS)
    masks = annealed(problem, steps, masks, moves_per_expert=moves_per_expert, seed=anneal_seed)
    return node_plan(
        problem, masks, "split_some", seconds=time.perf_counter() - begin, score=score,
        parameters={"cut_share": cut_share, "moves_per_expert": moves_per_expert, "anneal_seed": anneal_seed},
        notes={"num_cut": int((masks == CUT).sum())},
    )  # fmt: skip
