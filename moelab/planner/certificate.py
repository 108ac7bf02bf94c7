"""certificate: how far a plan and annealing are from the optimum of one layer, proven on a sample of steps.

Floor 3. At most 256 planning layer-steps; the same ones score the plan as it is written, are annealed by themselves,
and are given to branch and bound, whose dual bound no placement with these budgets beats: on two nodes without copies
our own (``imbalance_tree``), else HiGHS on a mixed-integer program (``placement_program``). Where HiGHS' program of all
steps is too hard, programs of ``PARTS - 1`` in ``PARTS`` of them are not: each part is left out once, so every step
counts as often, and the mean over the programs bounds the mean over the steps (the minimum of a sum is not below the
sum of the minima). The better of both bounds stands; where both end at the time limit there is a gap, which is
reported.

Does not know the other steps: a plan is made for all of them and owes the sample nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from moelab.planner.annealing import annealed
from moelab.planner.imbalance_tree import least_imbalance
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import NodeProblem
from moelab.planner.placement_program import floors_of, solve
from moelab.planner.step_maximum import step_maxima

MOST_STEPS = 256
MOST_NODES = 6
ATTEMPTS = 8
PARTS = 4
MOST_TOGETHER = 192
FIRST_SHARE, FIRST_SHARE_OF_MORE = 0.75, 0.15
"""Of the time limit, for the program of all steps before those of the parts; less for more than ``MOST_TOGETHER``
steps, which hardly end (``docs/log.md``)."""


@dataclass(frozen=True)
class Certificate:
    """Means over the sampled layer-steps, in experts.

    ``plan``: of the plan's own placement of the layer; ``annealed``: of the best annealing of these steps alone, from
    it and with as many copies on each node; ``bound``: the dual bound. ``plan_gap``, ``gap``: of both, over the bound,
    minus 1. ``milp``: of a placement better than ``annealed`` that the search found, ``None`` without one;
    ``is_optimal``: the bound is the optimum. ``solver``: ``tree`` or ``HiGHS``. ``lp``: the relaxation's bound,
    ``None`` where nothing had to be solved because annealing is at ``floor``, the mean of ceil(K / N).
    ``num_programs``: 1 where all steps together gave the bound, else ``PARTS``.
    """

    layer: int
    num_steps: int
    plan: float
    annealed: float
    bound: float
    plan_gap: float
    gap: float
    milp: float | None
    is_optimal: bool
    lp: float | None
    floor: float
    num_programs: int
    anneal_s: float
    milp_s: float
    time_limit_s: float
    solver: str


def certificate(
    problem: NodeProblem,
    masks: np.ndarray,
    *,
    layer: int,
    num_steps: int = 128,
    time_limit_s: float = 60.0,
    moves_per_expert: float = 4000,
    seed: int = 0,
) -> Certificate:
    """The certificate of ``layer`` under ``masks`` int64 [L, E] of a plan; fewer steps where the layer has fewer.

    Raises ``ValueError`` for unequal rates, fast tiers, cut experts, or more than ``MOST_NODES`` nodes.
    """
    num_nodes = problem.num_nodes
    if len(problem.tiers) != num_nodes or np.ptp(problem.node_rates) > 1e-9 or (masks == 0).any():
        raise ValueError(
            "a certificate is for whole experts on nodes of one rate without fast tiers: leave it out here"
        )
    if num_nodes > MOST_NODES or not 1 <= num_steps <= MOST_STEPS:
        raise ValueError(f"got {num_nodes} nodes, {num_steps} steps, expected up to {MOST_NODES} and {MOST_STEPS}")
    sample = sample_of_layer(problem.train, layer, num_steps, seed)
    copies = np.array([(masks[layer] >> node & 1).sum() for node in range(num_nodes)])
    begin = time.perf_counter()
    alone = _annealed_alone(problem, sample, masks, layer, moves_per_expert, seed)
    anneal_s = time.perf_counter() - begin
    of_plan, ours = (float(step_maxima(sample, each, problem.times).mean()) for each in (masks, alone))
    floor = float(floors_of([np.arange(size) for size in sample.sizes], num_nodes).mean())
    begin = time.perf_counter()

    def program(steps: LayerSteps, known: float, seconds: float) -> tuple[float, float | None, bool, float | None]:
        sets = [steps.keys[a:b] % problem.shape[1] for a, b in zip(steps.offsets, steps.offsets[1:], strict=False)]
        if is_tree:
            return least_imbalance(sets, problem.shape[1], copies, seconds, beat=known)[:4]
        return solve(sets, problem.shape[1], copies, max(0.1, seconds), beat=known)

    def left() -> float:
        return time_limit_s - (time.perf_counter() - begin)

    is_tree = num_nodes == 2 and int(copies.sum()) == problem.shape[1] and ours > floor + 1e-9
    share = 1.0 if is_tree else FIRST_SHARE if sample.num_layer_steps <= MOST_TOGETHER else FIRST_SHARE_OF_MORE
    bound, found, is_optimal, lp = program(sample, ours, share * time_limit_s)
    num_programs, parts = 1, np.array_split(np.arange(sample.num_layer_steps), PARTS)
    if not is_tree and not is_optimal and sample.num_layer_steps % PARTS == 0:
        bounds = []
        for index, part in enumerate(parts):
            rest = sample.take(np.setdiff1d(np.arange(sample.num_layer_steps), part))
            known = _annealed_alone(problem, rest, masks, layer, moves_per_expert, seed)
            of_rest = float(step_maxima(rest, known, problem.times).mean())
            bounds.append(program(rest, of_rest, left() / (PARTS - index))[0])
        mean = _whole_steps(float(np.mean(bounds)), sample.num_layer_steps)
        if mean > bound:
            bound, num_programs = mean, PARTS
    return Certificate(
        layer=layer, num_steps=sample.num_layer_steps, plan=of_plan, annealed=ours, bound=bound,
        plan_gap=of_plan / bound - 1, gap=ours / bound - 1, milp=found, is_optimal=is_optimal or bound >= ours, lp=lp,
        floor=floor, num_programs=num_programs, anneal_s=anneal_s, milp_s=time.perf_counter() - begin,
        time_limit_s=time_limit_s, solver="tree" if is_tree else "HiGHS",
    )  # fmt: skip


def _whole_steps(mean: float, num_steps: int) -> float:
    """The least mean not below ``mean`` that whole numbers of experts have."""
    return float(np.ceil(mean * num_steps - 1e-6)) / num_steps


def sample_of_layer(steps: LayerSteps, layer: int, num_steps: int, seed: int) -> LayerSteps:
    """Up to ``num_steps`` layer-steps of one layer, drawn without replacement."""
    of_layer = np.flatnonzero(steps.layer == layer)
    if not len(of_layer):
        raise ValueError(f"layer {layer} routes nothing in the planning steps: choose another layer")
    return steps.take(np.sort(np.random.default_rng(seed).permutation(of_layer)[:num_steps]))


def _annealed_alone(
    problem: NodeProblem, sample: LayerSteps, masks: np.ndarray, layer: int, moves: float, seed: int
) -> np.ndarray:
    """Best of some annealings of the sample, which is small enough for luck to matter; copies keep their numbers."""
    best, least = masks, step_maxima(sample, masks, problem.times).mean()
    room = np.zeros(problem.num_nodes, np.int64)
    for attempt in range(ATTEMPTS):
        tried = annealed(
            problem, sample, masks, moves_per_expert=moves, room=room, seed=seed + attempt, only_layer=layer, hot=2.0,
            cold=0.05,
        )  # fmt: skip
        value = step_maxima(sample, tried, problem.times).mean()
        if value < least:
            best, least = tried, value
    return best
