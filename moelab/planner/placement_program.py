"""placement_program: the least mean maximum of one layer over some steps: a mixed-integer program, by HiGHS.  Floor 3.

Binaries ``x[e, n]``: node n holds expert e. By Hall's theorem a step's maximum z is the least integer not below the
number of experts with no copy outside U over the size of U, for every set U of nodes, so replicas need no assignment
variables: ``q[e, U] >= 1 - sum of x[e, n] outside U`` counts them. Whole experts, equal rates. The relaxation is weak:
with half of every expert on each of two nodes all steps are even, K / N. A placement that is known cuts the tree: only
what beats it is looked for. Does not know layers, plans or how that placement was found.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def solve(
    sets: list[np.ndarray], num_experts: int, copies: np.ndarray, time_limit_s: float, beat: float | None = None
) -> tuple[float, float | None, bool, float | None]:
    """(dual bound, best found, bound is the optimum, LP bound) of the mean maximum over ``sets`` of expert ids.

    ``copies`` int64 [N]: experts that each node may hold. ``beat``: a mean that some placement has; only better ones
    are looked for, and where there is none it is the bound. Without HiGHS where it is at the floor, mean ceil(K / N).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    num_steps = len(sets)
    floor = float(floors_of(sets, len(copies)).mean())
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


def floors_of(sets: list[np.ndarray], num_nodes: int) -> np.ndarray:
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
    floors, last = floors_of(sets, num_nodes), num_x + num_q + num_steps
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
