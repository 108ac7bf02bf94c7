"""certificate: how far a plan and annealing are from the optimum of one layer, proven on a sample of steps.

Floor 3. At most 256 planning layer-steps; the same ones score the plan as it is written, are annealed by themselves,
and are given to branch and bound, whose dual bound no placement with these budgets beats: on two nodes our own
(``imbalance_tree``), which first rules out what is more than ``AIM`` below annealing and then all that is below it;
on more nodes HiGHS on a mixed-integer program (``placement_program``). Where HiGHS' program of all steps is too hard,
programs of ``PARTS - 1`` in ``PARTS`` of them are not: each part is left out once, so every step
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

AIM = 0.02
"""Of a first pass on two nodes: the gap that M1 of the plans asks for, proven far sooner than the optimum."""

MOST_STEPS = 256
MOST_NODES = 6
ATTEMPTS, LONG_ATTEMPTS, LONGER = 8, 2, 10
"""Annealings of the sample, and those that are ``LONGER`` times as long: they find more where experts are many and
used alike, and less here and there (``docs/log.md``)."""

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
    ``num_programs``: 1 where all steps together gave the bound, else ``PARTS``. ``anneal_s``, ``milp_s`` and the limit
    are of CPU where ``solver`` is ``tree``, else of the clock.
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
    end_at: float = 0.0,
) -> Certificate:
    """The certificate of ``layer`` under ``masks`` int64 [L, E] of a plan; fewer steps where the layer has fewer.

    ``end_at``: a gap that is enough; on two nodes the search ends where its first pass has proven it.
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
    clock = time.thread_time if num_nodes == 2 else time.perf_counter
    begin = clock()
    alone = _annealed_alone(problem, sample, masks, layer, moves_per_expert, seed)
    anneal_s = clock() - begin
    of_plan, ours = (float(step_maxima(sample, each, problem.times).mean()) for each in (masks, alone))
    floor = float(floors_of([np.arange(size) for size in sample.sizes], num_nodes).mean())
    is_tree = num_nodes == 2 and ours > floor + 1e-9
    begin, num_programs = clock(), 1
    if is_tree:
        bound, found, is_optimal, lp = _by_tree(problem, sample, copies, ours, time_limit_s, end_at)
        bound = max(bound, floor)
    else:
        bound, found, is_optimal, lp, num_programs = _by_programs(
            problem, sample, masks, layer, copies, ours, time_limit_s, moves_per_expert, seed
        )
    return Certificate(
        layer=layer, num_steps=sample.num_layer_steps, plan=of_plan, annealed=ours, bound=bound,
        plan_gap=of_plan / bound - 1, gap=ours / bound - 1, milp=found, is_optimal=is_optimal or bound >= ours, lp=lp,
        floor=floor, num_programs=num_programs, anneal_s=anneal_s, milp_s=clock() - begin, time_limit_s=time_limit_s,
        solver="tree" if is_tree else "HiGHS",
    )  # fmt: skip


def _sets(problem: NodeProblem, steps: LayerSteps) -> list[np.ndarray]:
    return [steps.keys[a:b] % problem.shape[1] for a, b in zip(steps.offsets, steps.offsets[1:], strict=False)]


def _by_tree(
    problem: NodeProblem, sample: LayerSteps, copies: np.ndarray, ours: float, time_limit_s: float, end_at: float
) -> tuple[float, float | None, bool, float | None]:
    """What ``least_imbalance`` proves: first that nothing is below ``ours`` by more than ``AIM``, then by anything."""
    sets, num_steps, begin = _sets(problem, sample), sample.num_layer_steps, time.thread_time()
    gap = max(AIM, end_at)
    total = round(_whole_steps(ours / (1 + gap), num_steps) * num_steps)
    total += ours / (total / num_steps) - 1 > gap  # rounding left it above by nothing
    aim = total / num_steps
    bound, found, is_done, lp = least_imbalance(sets, problem.shape[1], copies, time_limit_s, beat=aim)[:4]
    left = time_limit_s - (time.thread_time() - begin)
    if found is not None or aim >= ours - 1e-9 or not is_done:
        return bound, found, is_done and (found is not None or aim >= ours - 1e-9), lp
    if ours / bound - 1 <= end_at or left <= 0:
        return bound, None, False, lp
    again, found, is_done, lp = least_imbalance(sets, problem.shape[1], copies, left, beat=ours)[:4]
    return max(bound, again), found, is_done, lp


def _by_programs(
    problem: NodeProblem, sample: LayerSteps, masks: np.ndarray, layer: int, copies: np.ndarray, ours: float,
    time_limit_s: float, moves: float, seed: int,
) -> tuple[float, float | None, bool, float | None, int]:  # fmt: skip
    """What HiGHS proves of all steps, or of the programs that leave a part out, and how many programs gave it."""
    begin, num_steps = time.perf_counter(), sample.num_layer_steps

    def program(steps: LayerSteps, known: float, seconds: float) -> tuple[float, float | None, bool, float | None]:
        return solve(_sets(problem, steps), problem.shape[1], copies, max(0.1, seconds), beat=known)

    share = FIRST_SHARE if num_steps <= MOST_TOGETHER else FIRST_SHARE_OF_MORE
    bound, found, is_optimal, lp = program(sample, ours, share * time_limit_s)
    if is_optimal or num_steps % PARTS:
        return bound, found, is_optimal, lp, 1
    bounds = []
    for index, part in enumerate(np.array_split(np.arange(num_steps), PARTS)):
        rest = sample.take(np.setdiff1d(np.arange(num_steps), part))
        known = _annealed_alone(problem, rest, masks, layer, moves, seed)
        of_rest = float(step_maxima(rest, known, problem.times).mean())
        left = time_limit_s - (time.perf_counter() - begin)
        bounds.append(program(rest, of_rest, left / (PARTS - index))[0])
    mean = _whole_steps(float(np.mean(bounds)), num_steps)
    return (mean, found, False, lp, PARTS) if mean > bound else (bound, found, False, lp, 1)


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
    for attempt in range(ATTEMPTS + LONG_ATTEMPTS):
        tried = annealed(
            problem, sample, masks, moves_per_expert=moves * (1 if attempt < ATTEMPTS else LONGER), room=room,
            seed=seed + attempt, only_layer=layer, hot=2.0, cold=0.05,
        )  # fmt: skip
        value = step_maxima(sample, tried, problem.times).mean()
        if value < least:
            best, least = tried, value
    return best
