"""certificate: how far a plan and annealing are from the optimum of one layer, proven by HiGHS on a sample of steps.

Floor 3. At most 256 planning layer-steps; the same ones score the plan as it is written, are annealed by themselves,
and are given to a mixed-integer program, whose dual bound no placement with these budgets beats. Binaries ``x[e, n]``:
node n holds expert e. By Hall's theorem a step's maximum z is the least integer not below the number of experts with no
copy outside U over the size of U, for every set U of nodes, so replicas need no assignment variables: ``q[e, U] >= 1 -
sum of x[e, n] outside U`` counts them. Whole experts, equal rates. What annealing reached is a row of the program (find
something better), which cuts its tree (``docs/log.md``). The relaxation is weak: with half of every expert on each of
two nodes all steps are even, K / N; so large instances end at the time limit with a gap, which is reported.

Does not know the other steps: a plan is made for all of them and owes the sample nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from moelab.planner.annealing import annealed
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import NodeProblem
from moelab.planner.step_maximum import step_maxima

MOST_STEPS = 256
MOST_NODES = 6
ATTEMPTS = 16


@dataclass(frozen=True)
class Certificate:
    """Means over the sampled layer-steps, in experts.

    ``plan``: of the plan's own placement of the layer; ``annealed``: of the best annealing of these steps alone, from
    it and with as many copies on each node; ``bound``: the dual bound. ``plan_gap``, ``gap``: of both, over the bound,
    minus 1. ``milp``: of a placement better than ``annealed`` that HiGHS found, ``None`` without one; ``is_optimal``:
    the bound is the optimum. ``lp``: the relaxation's bound, ``None`` where nothing had to be solved because annealing
    is at ``floor``, the mean of ceil(K / N).
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
    anneal_s: float
    milp_s: float
    time_limit_s: float


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
    sets = [sample.keys[a:b] % problem.shape[1] for a, b in zip(sample.offsets, sample.offsets[1:], strict=False)]
    begin = time.perf_counter()
    bound, found, is_optimal, lp = solve(sets, problem.shape[1], copies, time_limit_s, beat=ours)
    return Certificate(
        layer=layer, num_steps=len(sets), plan=of_plan, annealed=ours, bound=bound, plan_gap=of_plan / bound - 1,
        gap=ours / bound - 1, milp=found, is_optimal=is_optimal, lp=lp, floor=float(_floors(sets, num_nodes).mean()),
        anneal_s=anneal_s, milp_s=time.perf_counter() - begin, time_limit_s=time_limit_s,
    )  # fmt: skip


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


def solve(
    sets: list[np.ndarray], num_experts: int, copies: np.ndarray, time_limit_s: float, beat: float | None = None
) -> tuple[float, float | None, bool, float | None]:
    """(dual bound, best found, bound is the optimum, LP bound) of the mean maximum over ``sets`` of expert ids.

    ``copies`` int64 [N]: experts that each node may hold. ``beat``: a mean that some placement has; only better ones
    are looked for, and where there is none it is the bound. Without HiGHS where it is at the floor, mean ceil(K / N).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    num_steps = len(sets)
    floor = float(_floors(sets, len(copies)).mean())
    if beat is not None and beat <= floor + 1e-9:
        return floor, None, True, None
    cost, matrix, low, high, lower, upper, integrality = _program(sets, num_experts, copies, beat)
    bounds, rows = Bounds(lower, upper), LinearConstraint(matrix, low, high)
    options = {"time_limit": time_limit_s, "mip_rel_gap": 1e-6}
    relaxed = milp(cost, integrality=np.zeros_like(integrality), constraints=rows, bounds=bounds, options=options)
    done = milp(cost, integrality=integrality, constraints=rows, bounds=bounds, options=options)
    lp = floor if relaxed.fun is None else float(relaxed.fun) / num_steps
    dual = getattr(done, "mip_dual_bound", None)
    total = floor * num_steps if dual is None or not np.isfinite(dual) else np.ceil(dual - 1e-6)
    bound = max(floor, float(total) / num_steps)
    is_found = done.x is not None and (beat is None or done.x[-1] < 0.5)
    return bound, float(done.fun) / num_steps if is_found else None, done.status == 0, lp


def _floors(sets: list[np.ndarray], num_nodes: int) -> np.ndarray:
    """Experts on the fullest node at best, ceil(K / N), of each set."""
    return np.array([-(-len(inside) // num_nodes) for inside in sets])


def _program(sets: list[np.ndarray], num_experts: int, copies: np.ndarray, beat: float | None) -> tuple[Any, ...]:
    """Columns x [E N], q [E U], z [T]; rows: a copy each, budgets, q, and one for each step and U.

    With ``beat`` one more column, "nothing better", at its price, without which the sum of z is below it; so a solver
    that takes no start begins with that solution, and a bound comes back whatever it finds.
    """
    from scipy.sparse import coo_array

    num_nodes, num_steps = len(copies), len(sets)
    unions = [u for u in range(1, (1 << num_nodes) - 1)]
    num_x, num_q = num_experts * num_nodes, num_experts * len(unions)
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    low: list[float] = []
    high: list[float] = []

    def add(cells: list[tuple[int, float]], at_least: float, at_most: float) -> None:
        for column, value in cells:
            rows.append(len(low))
            columns.append(column)
            values.append(value)
        low.append(at_least)
        high.append(at_most)

    most_copies = 1 if copies.sum() == num_experts else num_nodes
    for e in range(num_experts):
        add([(e * num_nodes + n, 1) for n in range(num_nodes)], 1, most_copies)
        for i, union in enumerate(unions):
            outside = [(e * num_nodes + n, 1.0) for n in range(num_nodes) if not union >> n & 1]
            add([(num_x + e * len(unions) + i, 1.0), *outside], 1, np.inf)
    for n in range(num_nodes):
        add([(e * num_nodes + n, 1) for e in range(num_experts)], 0, copies[n])
    floors, last = _floors(sets, num_nodes), num_x + num_q + num_steps
    for t, inside in enumerate(sets):
        z = num_x + num_q + t
        for i, union in enumerate(unions):
            cells = [(num_x + int(e) * len(unions) + i, -1.0) for e in inside]
            add(
                [(z, float(union.bit_count())), *cells, *([] if beat is None else [(last, float(len(inside)))])],
                0,
                np.inf,
            )
        if beat is not None:
            add([(z, 1.0), (last, float(floors[t]))], floors[t], np.inf)
    sizes = np.array([len(inside) for inside in sets], np.float64)
    cost = np.concatenate([np.zeros(num_x + num_q), np.ones(num_steps)])
    upper = np.concatenate([np.ones(num_x + num_q), np.maximum(sizes, 1)])
    lower = np.concatenate([np.zeros(num_x + num_q), floors if beat is None else 0 * floors])
    integrality = np.concatenate([np.ones(num_x), np.zeros(num_q), np.ones(num_steps)])
    if beat is not None:
        add([(num_x + num_q + t, 1.0) for t in range(num_steps)], 0, round(beat * num_steps) - 1)
        cost, upper, lower, integrality = (
            np.append(column, value)
            for column, value in ((cost, round(beat * num_steps)), (upper, 1), (lower, 0), (integrality, 1))
        )
    matrix = coo_array((values, (rows, columns)), shape=(len(low), len(cost))).tocsr()
    if np.ptp(copies) == 0:  # equal nodes: the most used expert has a copy on node 0, else rename the nodes
        most_used = int(np.argmax(np.bincount(np.concatenate(sets), minlength=num_experts)))
        lower[most_used * num_nodes] = 1
    return cost, matrix, np.array(low), np.array(high), lower, upper, integrality
