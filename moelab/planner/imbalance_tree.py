"""imbalance_tree: the least mean maximum of two nodes, copies included, by branch and bound of our own.  Floor 3.

An expert is on node 0, on node 1 or on both. Best first: the open node of the least bound is parted by an expert, the
most used of those that the relaxation leaves undecided. Bounds are those of ``imbalance_dual``, begun from the parent's
multipliers, so that a tree node takes less than a millisecond; HiGHS takes several, and its cuts do not help here
(``docs/log.md``). The least open bound is a bound of everything, whenever the search stops. Equal nodes: the most used
expert is not on node 1 alone, else rename them. Nothing worse than a mean that is asked for is looked at: it cuts the
tree, and rules out what experts may be by their reduced costs; so a mean 2% below one that is known is far cheaper to
rule out than every better one. Whole experts, equal rates; more nodes: ``placement_program``. Does not know layers or
plans.
"""

from __future__ import annotations

import time

import numpy as np

from moelab.planner.compiled import compiled
from moelab.planner.imbalance_dual import (
    ALONE,
    BEST_LAMBDA,
    BEST_MU,
    COST_OF_BOTH,
    EXPERT_ROWS,
    LAMBDA,
    MEAN_ALONE,
    MEAN_SIGN,
    MU,
    NEVER,
    NU,
    ON_0,
    ON_1,
    ON_BOTH,
    RHO,
    SIGN,
    SLOPE,
    STEP_ROWS,
    raise_dual,
    settle,
)

MOST_BYTES = 400_000_000
"""Of open nodes: what experts may be, signs, shares and multipliers, a byte each, and a row of overhead."""

ROUNDS, ITERATIONS, LEAST_GAIN = 8, 25, 0.2
"""Of the ascent in a node; at the root ten times as many."""

SCALE = 127
"""Multipliers and signs are kept as int8: the next ascent begins from them, no bound rests on them."""

NODES_A_CALL = 200
NO_LEAF = -1


def least_imbalance(
    sets: list[np.ndarray], num_experts: int, copies: np.ndarray, time_limit_s: float, beat: float | None = None
) -> tuple[float, float | None, bool, float | None, int]:
    """(bound, best found below ``beat``, bound is the optimum, bound of the relaxation, tree nodes) over ``sets``.

    All are means of the fullest node, in experts. ``copies`` int64 [2]: experts that each node may hold, E to 2 E in
    all. ``beat``: only placements with a lower mean are looked for, all without one. "Optimum": no placement with a
    mean below ``beat`` is better than the bound. ``time_limit_s`` is of CPU. Raises ``ValueError`` for other than two
    nodes, or budgets that do not hold every expert once, or more than all on a node.
    """
    if len(copies) != 2 or int(np.sum(copies)) < num_experts or max(copies) > num_experts:
        raise ValueError(
            f"copies are {list(copies)}, expected those of two nodes, at most {num_experts} each and no fewer in all"
        )
    begin, num_steps = time.thread_time(), len(sets)
    sizes = np.array([len(inside) for inside in sets], np.int64)
    offsets, experts = np.concatenate([[0], np.cumsum(sizes)]), np.concatenate(sets).astype(np.int64)
    first_use = np.concatenate([[0], np.cumsum(np.bincount(experts, minlength=num_experts))])
    uses = np.repeat(np.arange(num_steps), sizes)[np.argsort(experts, kind="stable")]
    most_on_0, most_on_1 = num_experts - int(copies[1]), num_experts - int(copies[0])  # alone; more copies never harm
    num_both, all_uses = num_experts - most_on_0 - most_on_1, int(sizes.sum())
    known = all_uses + 1 if beat is None else round(beat * num_steps)
    enough = 2.0 * (known - 1) - all_uses + 1e-6  # D above it: no total below ``known``
    capacity = int(np.clip(MOST_BYTES // (2 * num_steps + 3 * num_experts + 64), 16, 1_000_000))
    tree = _Tree(capacity, num_steps, num_experts)
    may = np.full(num_experts, ON_0 + ON_1 + ON_BOTH, np.int64)
    if most_on_0 == most_on_1:
        may[int(np.argmax(np.diff(first_use)))] -= ON_1
    csr, floor = (offsets, experts, first_use, uses, float(most_on_0 - most_on_1), num_both), float((sizes % 2).sum())
    settle(may, np.zeros(num_experts), np.zeros(num_experts), NEVER, np.inf, most_on_0, most_on_1, num_both)
    of_steps, of_experts, prices = np.zeros((STEP_ROWS, num_steps)), np.zeros((EXPERT_ROWS, num_experts)), np.zeros(2)
    of_steps[MU], of_experts[ALONE] = 1, 1
    root = raise_dual(
        *csr, may, prices, enough, 10 * ROUNDS, ITERATIONS, LEAST_GAIN / 10, of_steps, of_experts
    )  # fmt: skip
    root = max(root, floor)
    tree.keep(0, may, of_steps, of_experts, prices)
    tree.bounds[0], tree.nodes[0] = root, 0
    num_open, num_free, leaf = int(root < enough), capacity - 1, NO_LEAF
    num_nodes = 1
    while num_open and num_free >= 3 and leaf == NO_LEAF:
        num_open, num_free, leaf, done = _grow(
            *csr, enough, most_on_0, most_on_1, NODES_A_CALL, *tree.stored, num_open, num_free, of_steps, of_experts,
            prices, may, ROUNDS, ITERATIONS, LEAST_GAIN,
        )  # fmt: skip
        num_nodes += done
        if time.thread_time() - begin > time_limit_s:
            break
    lp = (all_uses + min(root, enough)) / 2 / num_steps
    if not num_open:
        return known / num_steps, None, True, lp, num_nodes
    total = int(np.ceil((all_uses + tree.bounds[0]) / 2 - 1e-6))
    found = total / num_steps if leaf != NO_LEAF else None
    return total / num_steps, found, leaf != NO_LEAF, lp, num_nodes


class _Tree:
    """Rows of open nodes, a heap of (bound, row), and rows that are free."""

    def __init__(self, capacity: int, num_steps: int, num_experts: int) -> None:
        self.may = np.zeros((capacity, num_experts), np.int8)
        self.primal = np.zeros((capacity, 2, num_experts), np.int8)
        self.multipliers = np.zeros((capacity, 2, num_steps), np.int8)
        self.prices = np.zeros((capacity, 2))
        self.bounds, self.nodes = np.empty(capacity), np.zeros(capacity, np.int64)
        self.free = np.arange(capacity)[::-1].copy()
        self.stored = (self.may, self.primal, self.multipliers, self.prices, self.bounds, self.nodes, self.free)

    def keep(
        self, row: int, may: np.ndarray, of_steps: np.ndarray, of_experts: np.ndarray, prices: np.ndarray
    ) -> None:  # fmt: skip
        _keep(self.may, self.primal, self.multipliers, self.prices, row, may, of_steps, of_experts, prices)


@compiled
def _grow(
    offsets, experts, first_use, uses, balance, num_both, enough, most_on_0, most_on_1, most_nodes, all_may, all_primal,
    all_multipliers, all_prices, bounds, nodes, free, num_open, num_free, of_steps, of_experts, prices, may, rounds,
    iterations, least_gain,
):  # fmt: skip
    """(open, free rows, leaf, bounds computed): parts the least open node, again and again; ends at a whole placement.

    Its bound is its value, so it is the optimum.
    """
    num_steps, num_experts, done = len(offsets) - 1, len(may), 0
    while num_open > 0 and num_free >= 3 and done < most_nodes:
        row, above = nodes[0], bounds[0]
        chosen, most = -1, 0.0  # experts that no step uses fill up what is left, wherever
        for expert in range(num_experts):
            if all_may[row, expert] & (all_may[row, expert] - 1):
                sign, alone = all_primal[row, 0, expert] / SCALE, all_primal[row, 1, expert] / SCALE
                score = (first_use[expert + 1] - first_use[expert]) * (1.02 - max(abs(sign), 1 - alone))
                if score > most:
                    chosen, most = expert, score
        if chosen < 0:
            return num_open, num_free, row, done
        num_open = _take_first(bounds, nodes, num_open)
        for side in (ON_0, ON_1, ON_BOTH):
            if not all_may[row, chosen] & side:
                continue
            for expert in range(num_experts):
                may[expert] = all_may[row, expert]
                of_experts[SIGN, expert] = all_primal[row, 0, expert] / SCALE
                of_experts[ALONE, expert] = all_primal[row, 1, expert] / SCALE
            for step in range(num_steps):
                of_steps[LAMBDA, step] = all_multipliers[row, 0, step] / SCALE
                of_steps[MU, step] = all_multipliers[row, 1, step] / SCALE
            prices[NU], prices[RHO] = all_prices[row, NU], all_prices[row, RHO]
            may[chosen] = side
            if not settle(
                may, of_experts[SLOPE], of_experts[COST_OF_BOTH], NEVER, enough, most_on_0, most_on_1, num_both
            ):  # fmt: skip
                continue
            value = raise_dual(
                offsets, experts, first_use, uses, balance, num_both, may, prices, enough, rounds, iterations,
                least_gain, of_steps, of_experts,
            )  # fmt: skip
            done += 1
            if value >= enough or not settle(
                may, of_experts[SLOPE], of_experts[COST_OF_BOTH], value, enough, most_on_0, most_on_1, num_both
            ):  # fmt: skip
                continue
            value = max(value, above, _value_if_whole(offsets, experts, first_use, may))
            if value >= enough:
                continue
            num_free -= 1
            child = free[num_free]
            _keep(all_may, all_primal, all_multipliers, all_prices, child, may, of_steps, of_experts, prices)
            num_open = _put(bounds, nodes, num_open, value, child)
        free[num_free] = row
        num_free += 1
    return num_open, num_free, -1, done


@compiled
def _keep(all_may, all_primal, all_multipliers, all_prices, row, may, of_steps, of_experts, prices):
    for expert in range(len(may)):
        all_may[row, expert] = may[expert]
        all_primal[row, 0, expert] = round(SCALE * of_experts[MEAN_SIGN, expert])
        all_primal[row, 1, expert] = round(SCALE * of_experts[MEAN_ALONE, expert])
    for step in range(all_multipliers.shape[2]):
        all_multipliers[row, 0, step] = round(SCALE * of_steps[BEST_LAMBDA, step])
        all_multipliers[row, 1, step] = round(SCALE * of_steps[BEST_MU, step])
    all_prices[row, NU], all_prices[row, RHO] = prices[NU], prices[RHO]


@compiled
def _value_if_whole(offsets, experts, first_use, may):
    """What the nodes differ by in all steps beyond their copies, at least 1 in odd ones; ``NEVER`` while an expert in
    use is free."""
    for expert in range(len(may)):
        if may[expert] & (may[expert] - 1) and first_use[expert + 1] > first_use[expert]:
            return NEVER
    total = 0.0
    for step in range(len(offsets) - 1):
        imbalance, on_both = 0, 0
        for place in range(offsets[step], offsets[step + 1]):
            each = may[experts[place]]
            imbalance += (each == ON_0) - (each == ON_1)
            on_both += each == ON_BOTH
        total += max(abs(imbalance) - on_both, (offsets[step + 1] - offsets[step]) % 2)
    return total


@compiled
def _put(bounds, nodes, num_open, bound, row):
    place = num_open
    while place > 0 and bounds[(place - 1) // 2] > bound:
        bounds[place], nodes[place] = bounds[(place - 1) // 2], nodes[(place - 1) // 2]
        place = (place - 1) // 2
    bounds[place], nodes[place] = bound, row
    return num_open + 1


@compiled
def _take_first(bounds, nodes, num_open):
    """Takes the least off the heap."""
    num_open -= 1
    bound, row, place = bounds[num_open], nodes[num_open], 0
    while 2 * place + 1 < num_open:
        below = 2 * place + 1
        if below + 1 < num_open and bounds[below + 1] < bounds[below]:
            below += 1
        if bounds[below] >= bound:
            break
        bounds[place], nodes[place] = bounds[below], nodes[below]
        place = below
    bounds[place], nodes[place] = bound, row
    return num_open
