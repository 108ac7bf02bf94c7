"""imbalance_tree: the least mean maximum of two nodes without copies, by branch and bound of our own.  Floor 3.

Best first: the open node of the least bound is parted by an expert, the most used of those that the relaxation leaves
undecided. Bounds are those of ``imbalance_dual``, begun from the parent's multipliers, so that a tree node takes less
than a millisecond; HiGHS takes several, and its cuts do not help here (``docs/log.md``). The least open bound is a
bound of everything, whenever the search stops. Equal nodes: the most used expert is on node 0, else rename them. A mean
that is known cuts the tree, and may fix experts by their reduced costs. Whole experts, equal rates, one copy each; more
nodes or copies: ``placement_program``. Does not know layers or plans.
"""

from __future__ import annotations

import time

import numpy as np

from moelab.planner.compiled import compiled
from moelab.planner.imbalance_dual import NEVER, raise_dual, settle

MOST_BYTES = 400_000_000
"""Of open nodes: experts, signs and multipliers, a byte each, and a row of overhead."""

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

    All are means of the fullest node, in experts. ``copies`` int64 [2], of sum E: experts on each node. ``beat``: a
    mean that some placement has; without one every placement is looked for. "Optimum": no placement with a mean below
    ``beat`` is better than the bound. Raises ``ValueError`` for other than two nodes, or copies.
    """
    if len(copies) != 2 or int(np.sum(copies)) != num_experts:
        raise ValueError(f"copies are {list(copies)}, expected those of two nodes, {num_experts} in all, one an expert")
    begin, num_steps = time.perf_counter(), len(sets)
    sizes = np.array([len(inside) for inside in sets], np.int64)
    offsets, experts = np.concatenate([[0], np.cumsum(sizes)]), np.concatenate(sets).astype(np.int64)
    first_use = np.concatenate([[0], np.cumsum(np.bincount(experts, minlength=num_experts))])
    uses = np.repeat(np.arange(num_steps), sizes)[np.argsort(experts, kind="stable")]
    all_uses, balance = int(sizes.sum()), float(copies[0] - copies[1])
    known = all_uses + 1 if beat is None else round(beat * num_steps)
    enough = 2.0 * (known - 1) - all_uses + 1e-6  # D above it: no total below ``known``
    capacity = int(np.clip(MOST_BYTES // (num_steps + 2 * num_experts + 64), 16, 1_000_000))
    tree = _Tree(capacity, num_steps, num_experts)
    if copies[0] == copies[1]:
        tree.fixed[0, int(np.argmax(np.diff(first_use)))] = 1
    csr, floor = (offsets, experts, first_use, uses, balance), float((sizes % 2).sum())
    settle(tree.fixed[0], np.zeros(num_experts), NEVER, np.inf, *copies)
    root, tree.nu[0] = raise_dual(
        *csr, tree.fixed[0], np.zeros(num_steps), 0.0, np.zeros(num_experts), enough, 10 * ROUNDS, ITERATIONS,
        LEAST_GAIN / 10, *tree.scratch[:6],
    )  # fmt: skip
    tree.multipliers[0] = np.round(SCALE * tree.scratch[0])
    tree.signs[0] = np.round(SCALE * tree.scratch[1])
    root = max(root, floor)
    tree.bounds[0], tree.nodes[0] = root, 0
    num_open, num_free, leaf = int(root < enough), capacity - 1, NO_LEAF
    num_nodes = 1
    while num_open and num_free >= 2 and leaf == NO_LEAF:
        num_open, num_free, leaf, done = _grow(
            *csr, enough, int(copies[0]), int(copies[1]), NODES_A_CALL, *tree.stored, num_open, num_free, *tree.scratch,
            ROUNDS, ITERATIONS, LEAST_GAIN,
        )  # fmt: skip
        num_nodes += done
        if time.perf_counter() - begin > time_limit_s:
            break
    lp = (all_uses + min(root, enough)) / 2 / num_steps
    if not num_open:
        return known / num_steps, None, True, lp, num_nodes
    total = int(np.ceil((all_uses + tree.bounds[0]) / 2 - 1e-6))
    found = total / num_steps if leaf != NO_LEAF else None
    return total / num_steps, found, leaf != NO_LEAF, lp, num_nodes


class _Tree:
    """Rows of open nodes, a heap of (bound, row), rows that are free, and the scratch of one node."""

    def __init__(self, capacity: int, num_steps: int, num_experts: int) -> None:
        self.fixed = np.zeros((capacity, num_experts), np.int8)
        self.signs = np.zeros((capacity, num_experts), np.int8)
        self.multipliers = np.zeros((capacity, num_steps), np.int8)
        self.nu = np.zeros(capacity)
        self.bounds, self.nodes = np.empty(capacity), np.zeros(capacity, np.int64)
        self.free = np.arange(capacity)[::-1].copy()
        self.stored = (self.fixed, self.signs, self.multipliers, self.nu, self.bounds, self.nodes, self.free)
        of_steps, of_experts = [np.zeros(num_steps) for _ in range(3)], [np.zeros(num_experts) for _ in range(5)]
        self.scratch = (
            of_steps[0], of_experts[0], of_experts[1], of_steps[1], of_experts[2], of_experts[3], of_steps[2],
            of_experts[4], np.empty(num_experts, np.int8),
        )  # fmt: skip


@compiled
def _grow(
    offsets, experts, first_use, uses, balance, enough, most_on_0, most_on_1, most_nodes, all_fixed, all_signs,
    all_multipliers, all_nu, bounds, nodes, free, num_open, num_free, best_multipliers, mean_signs, slope, step_sums,
    sign_sums, ahead, multipliers, signs, fixed, rounds, iterations, least_gain,
):  # fmt: skip
    """(open, free rows, leaf, bounds computed): parts the least open node, again and again; ends at a whole placement.

    Its bound is its value, so it is the optimum.
    """
    num_steps, num_experts, done = len(offsets) - 1, len(fixed), 0
    while num_open > 0 and num_free >= 2 and done < most_nodes:
        row, above = nodes[0], bounds[0]
        chosen, most = -1, 0.0  # experts that no step uses fill up what is left, wherever
        for expert in range(num_experts):
            if all_fixed[row, expert] == 0:
                undecided = 1.02 - abs(all_signs[row, expert]) / SCALE
                score = (first_use[expert + 1] - first_use[expert]) * undecided
                if score > most:
                    chosen, most = expert, score
        if chosen < 0:
            return num_open, num_free, row, done
        num_open = _take_first(bounds, nodes, num_open)
        for side in (1, -1):
            for expert in range(num_experts):
                fixed[expert], signs[expert] = all_fixed[row, expert], all_signs[row, expert] / SCALE
            for step in range(num_steps):
                multipliers[step] = all_multipliers[row, step] / SCALE
            fixed[chosen] = side
            if not settle(fixed, slope, NEVER, enough, most_on_0, most_on_1):
                continue
            value, nu = raise_dual(
                offsets, experts, first_use, uses, balance, fixed, multipliers, all_nu[row], signs, enough, rounds,
                iterations, least_gain, best_multipliers, mean_signs, slope, step_sums, sign_sums, ahead,
            )  # fmt: skip
            done += 1
            if value >= enough or not settle(fixed, slope, value, enough, most_on_0, most_on_1):
                continue
            value = max(value, above, _value_if_whole(offsets, experts, first_use, fixed))
            if value >= enough:
                continue
            num_free -= 1
            child = free[num_free]
            for expert in range(num_experts):
                all_fixed[child, expert] = fixed[expert]
                all_signs[child, expert] = round(SCALE * mean_signs[expert])
            for step in range(num_steps):
                all_multipliers[child, step] = round(SCALE * best_multipliers[step])
            all_nu[child] = nu
            num_open = _put(bounds, nodes, num_open, value, child)
        free[num_free] = row
        num_free += 1
    return num_open, num_free, -1, done


@compiled
def _value_if_whole(offsets, experts, first_use, fixed):
    """What the nodes differ by in all steps, at least 1 in odd ones; ``NEVER`` while an expert in use is free."""
    for expert in range(len(fixed)):
        if fixed[expert] == 0 and first_use[expert + 1] > first_use[expert]:
            return NEVER
    total = 0.0
    for step in range(len(offsets) - 1):
        imbalance = 0
        for place in range(offsets[step], offsets[step + 1]):
            imbalance += fixed[experts[place]]
        total += max(abs(imbalance), (offsets[step + 1] - offsets[step]) % 2)
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
