"""The tree's optimum against every placement, its bounds at any time, and HiGHS' optimum."""

from itertools import combinations

import numpy as np
import pytest

from moelab.planner.imbalance_dual import (
    ALONE,
    COST_OF_BOTH,
    EXPERT_ROWS,
    LAMBDA,
    MU,
    NEVER,
    ON_0,
    ON_1,
    ON_BOTH,
    SIGN,
    SLOPE,
    STEP_ROWS,
    dual_value,
    raise_dual,
    settle,
)
from moelab.planner.imbalance_tree import least_imbalance
from moelab.planner.placement_program import solve


def _totals(sets, num_experts, on_0, num_both=0):
    """Sum of the fullest node for every choice: {(those on node 0 alone, those on both): sum}; counted by hand."""
    totals = {}
    for both in combinations(range(num_experts), num_both):
        alone = [e for e in range(num_experts) if e not in both]
        for chosen in combinations(alone, on_0):
            total = 0
            for inside in sets:
                a, c = len(set(chosen) & set(inside)), len(set(both) & set(inside))
                total += min(max(a + more, len(inside) - a - more) for more in range(c + 1))
            totals[frozenset(chosen), frozenset(both)] = total
    return totals


def _random_sets(rng, num_experts, num_steps, sizes):
    odds = rng.dirichlet(np.full(num_experts, 0.7)) + 1e-3
    return [
        np.sort(rng.choice(num_experts, rng.integers(*sizes), replace=False, p=odds / odds.sum()))
        for _ in range(num_steps)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_optimum_against_every_placement(seed):
    """Odd and even sizes, equal and uneven nodes, with and without a known mean."""
    rng = np.random.default_rng(seed)
    num_experts, num_steps = int(rng.integers(6, 11)), int(rng.integers(5, 40))
    on_0 = num_experts // 2 if seed % 2 else int(rng.integers(2, num_experts - 1))
    sets = _random_sets(rng, num_experts, num_steps, (1, 6))
    copies, best = np.array([on_0, num_experts - on_0]), min(_totals(sets, num_experts, on_0).values())
    for beat in (None, best / num_steps, (best + 1) / num_steps, (best + 4) / num_steps):
        bound, found, is_optimal, lp, nodes = least_imbalance(sets, num_experts, copies, 60, beat)
        assert is_optimal
        assert bound * num_steps == pytest.approx(best)
        assert (found is None) == (beat is not None and beat * num_steps < best + 0.5)
        assert found is None or found == bound
        assert lp <= bound + 1e-9
        assert nodes >= 1


@pytest.mark.parametrize("seed", range(12))
def test_optimum_with_copies_against_every_placement(seed):
    """One to three experts on both nodes, odd and even sizes, equal and uneven nodes, with and without a known mean."""
    rng = np.random.default_rng(100 + seed)
    num_experts, num_steps, num_both = int(rng.integers(6, 10)), int(rng.integers(5, 50)), 1 + seed % 3
    alone = num_experts - num_both
    on_0 = alone // 2 if seed % 2 else int(rng.integers(0, alone + 1))
    sets = _random_sets(rng, num_experts, num_steps, (2, 6))
    copies = np.array([on_0 + num_both, num_experts - on_0])
    best = min(_totals(sets, num_experts, on_0, num_both).values())
    for beat in (None, best / num_steps, (best + 1) / num_steps, (best + 4) / num_steps, (best - 1) / num_steps):
        bound, found, is_optimal, lp, _ = least_imbalance(sets, num_experts, copies, 60, beat)
        assert is_optimal
        assert bound * num_steps == pytest.approx(best - (beat is not None and beat * num_steps < best - 0.5))
        assert (found is None) == (beat is not None and beat * num_steps < best + 0.5)
        assert found is None or found == bound
        assert lp <= bound + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_budgets_that_are_not_all_used_are_no_better(seed):
    """Fewer copies than a node may hold never help: the least over every placement within the budgets is the same."""
    rng = np.random.default_rng(seed)
    sets, copies = _random_sets(rng, 7, 30, (2, 6)), [5, 4]
    best = min(
        min(_totals(sets, 7, on_0, num_both).values())
        for num_both in range(3)
        for on_0 in range(8 - num_both)
        if on_0 + num_both <= copies[0] and 7 - on_0 <= copies[1]
    )
    assert least_imbalance(sets, 7, np.array(copies), 60)[0] * 30 == pytest.approx(best)


def test_experts_that_no_step_uses_make_no_tree():
    """Forty of them: a placement of the others is whole, and found."""
    sets = _random_sets(np.random.default_rng(1), 10, 30, (2, 6))
    few = least_imbalance(sets, 10, np.array([5, 5]), 60)
    many = least_imbalance(sets, 50, np.array([25, 25]), 60)  # any numbers of the ten on each node
    best = min(min(_totals(sets, 10, on_0).values()) for on_0 in range(11))
    assert many[2]
    assert many[0] == many[1] == pytest.approx(best / 30)
    assert many[0] <= few[0]
    assert many[4] < 2**10


@pytest.mark.parametrize("num_both", [0, 2])
@pytest.mark.parametrize("seed", range(8))
def test_a_dual_is_below_every_placement_that_keeps_what_is_fixed(seed, num_both):
    """Whatever the multipliers: random ones, and those of the ascent; and it settles no better one away."""
    rng = np.random.default_rng(seed)
    num_experts, num_steps, on_0 = 8, 25, 3 + seed % 2
    on_1 = num_experts - num_both - on_0
    sets = _random_sets(rng, num_experts, num_steps, (1, 7))
    sizes, experts = np.array([len(s) for s in sets]), np.concatenate(sets)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    first_use = np.concatenate([[0], np.cumsum(np.bincount(experts, minlength=num_experts))])
    uses = np.repeat(np.arange(num_steps), sizes)[np.argsort(experts, kind="stable")]
    may = np.full(num_experts, 7 if num_both else 3)
    may[:3] = rng.choice([ON_0, ON_1], 3)
    if num_both:
        may[1:3] = rng.choice([ON_BOTH, ON_0 + ON_BOTH, ON_1 + ON_BOTH, ON_0 + ON_1], 2)

    def state(placement, expert):
        return ON_0 if expert in placement[0] else ON_BOTH if expert in placement[1] else ON_1

    differ = {
        placement: 2 * total - sizes.sum()
        for placement, total in _totals(sets, num_experts, on_0, num_both).items()
        if all(state(placement, e) & may[e] for e in range(num_experts))
    }
    least, csr = min(differ.values()), (offsets, first_use, uses, float(on_0 - on_1), num_both, may)
    for _ in range(20):
        mus = rng.random(num_steps)
        lambdas = rng.uniform(-1, 1, num_steps) * mus
        scratch = np.empty(num_experts), np.empty(num_experts)
        assert dual_value(*csr, lambdas, mus, rng.normal(), rng.normal(), 1.0, *scratch) <= least + 1e-9
    of_steps, of_experts = np.zeros((STEP_ROWS, num_steps)), np.zeros((EXPERT_ROWS, num_experts))
    of_steps[MU], of_experts[ALONE] = 1, 1
    prices = np.zeros(2)
    value = raise_dual(
        offsets, experts, first_use, uses, float(on_0 - on_1), num_both, may, prices, np.inf, 40, 25, 0.0, of_steps,
        of_experts,
    )  # fmt: skip
    assert NEVER < value <= least + 1e-9
    enough, before = least + 1e-6, may.copy()
    assert settle(may, of_experts[SLOPE], of_experts[COST_OF_BOTH], value, enough, on_0, on_1, num_both)
    assert ((may & before) == may).all(), "nothing is allowed anew"
    for placement, value in differ.items():
        assert value >= enough or all(state(placement, e) & may[e] for e in range(num_experts))


@pytest.mark.parametrize("num_both", [0, 3])
def test_the_ascent_reaches_the_relaxation(num_both):
    """The least absolute residuals of a linear program, by HiGHS, some experts fixed."""
    from scipy.optimize import linprog

    rng = np.random.default_rng(5)
    num_experts, num_steps = 24, 40
    sets = _random_sets(rng, num_experts, num_steps, (3, 7))
    sizes, experts = np.array([len(s) for s in sets]), np.concatenate(sets)
    first_use = np.concatenate([[0], np.cumsum(np.bincount(experts, minlength=num_experts))])
    uses = np.repeat(np.arange(num_steps), sizes)[np.argsort(experts, kind="stable")]
    may = np.full(num_experts, 7 if num_both else 3)
    may[np.argsort(-np.diff(first_use))[:10]] = rng.choice([ON_0, ON_1], 10)
    inside = np.zeros((num_steps, num_experts))
    for step, each in enumerate(sets):
        inside[step, each] = 1
    one, eye = np.ones((1, num_experts)), np.eye(num_steps)
    zero = np.zeros_like(inside)
    rows = np.block([[inside, -inside, -inside, -eye], [-inside, inside, -inside, -eye]])
    equal = np.block([
        [np.eye(num_experts)] * 3 + [zero.T], [one, -one, 0 * one, np.zeros((1, num_steps))],
        [0 * one, 0 * one, one, np.zeros((1, num_steps))],
    ])  # fmt: skip
    limits = [(0, 1 if may[e] & side else 0) for side in (ON_0, ON_1, ON_BOTH) for e in range(num_experts)]
    low = [(size % 2, None) for size in sizes]
    cost = np.concatenate([np.zeros(3 * num_experts), np.ones(num_steps)])
    right = np.concatenate([np.ones(num_experts), [1 - num_both % 2], [num_both]])
    relaxed = linprog(cost, rows, np.zeros(2 * num_steps), equal, right, limits + low)
    of_steps, of_experts = np.zeros((STEP_ROWS, num_steps)), np.zeros((EXPERT_ROWS, num_experts))
    of_steps[MU], of_experts[ALONE] = 1, 1
    value = raise_dual(
        np.concatenate([[0], np.cumsum(sizes)]), experts, first_use, uses, float(1 - num_both % 2), num_both, may,
        np.zeros(2), np.inf, 400, 25, -1.0, of_steps, of_experts,
    )  # fmt: skip
    assert relaxed.fun - 0.05 <= value <= relaxed.fun + 1e-6
    assert abs(of_steps[LAMBDA]).max() <= 1
    assert (abs(of_experts[SIGN]) <= of_experts[ALONE] + 1e-9).all()


@pytest.mark.parametrize("copies", [[9, 9], [10, 10], [11, 10]])
@pytest.mark.parametrize("seed", range(4))
def test_the_same_optimum_as_highs_and_a_bound_whenever_it_stops(seed, copies):
    rng = np.random.default_rng(seed)
    sets, copies = _random_sets(rng, 18, 50, (3, 7)), np.array(copies)
    optimum = least_imbalance(sets, 18, copies, 60)
    assert optimum[0] == pytest.approx(solve(sets, 18, copies, 60)[0])
    early = least_imbalance(sets, 18, copies, 0.0)  # one call of the loop, or the whole tree where that is enough
    assert optimum[3] - 1e-9 <= early[0] <= optimum[0] + 1e-9


def test_a_tree_without_room_stops_with_a_bound(monkeypatch):
    monkeypatch.setattr("moelab.planner.imbalance_tree.MOST_BYTES", 0)  # sixteen rows
    rng = np.random.default_rng(3)
    sets = [np.sort(rng.permutation(24)[:6]) for _ in range(48)]
    bound, found, is_optimal, lp, _ = least_imbalance(sets, 24, np.array([12, 12]), 60)
    assert (found, is_optimal) == (None, False)
    assert lp - 1e-9 <= bound <= 6
    monkeypatch.undo()
    whole = least_imbalance(sets, 24, np.array([12, 12]), 300)
    assert whole[2]
    assert bound <= whole[0]


def test_too_few_copies_and_more_nodes_are_refused():
    for copies in ([3, 2], [7, 3], [2, 2, 2]):
        with pytest.raises(ValueError, match="expected those of two nodes, at most 6 each"):
            least_imbalance([np.arange(3)], 6, np.array(copies), 1)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_fixed_is_what_the_plain_loop_fixes(seed):
    """Machine code of this CPU beside Python, wide enough for vectors: LLVM once moved experts that were fixed."""
    rng = np.random.default_rng(seed)
    for num_experts in (*range(1, 20), *rng.integers(20, 400, 10).tolist()):
        free = rng.random() ** 3
        may = np.where(rng.random(num_experts) < free, rng.choice([3, 5, 6, 7], num_experts), ON_0)
        may[may == ON_0] = rng.choice([ON_0, ON_1, ON_BOTH], (may == ON_0).sum())
        room = [int((may == side).sum()) + int(rng.integers(3)) for side in (ON_0, ON_1, ON_BOTH)]
        slope, both, value = rng.normal(size=num_experts), rng.normal(size=num_experts), [NEVER, 5.0][seed % 2]
        got, expected = may.copy(), may.copy()
        answer = settle(got, slope, both, value, 7.0, *room)
        assert answer == settle.py_func(expected, slope, both, value, 7.0, *room)
        np.testing.assert_array_equal(got, expected)
        is_fixed = np.bitwise_count(may) == 1
        assert (got[is_fixed] == may[is_fixed]).all(), "what was fixed stays"


@pytest.mark.parametrize("seed", range(6))
def test_no_placement_is_below_the_bound_of_many_experts(seed):
    """At widths of real models, where no brute force goes: descent by swaps finds nothing below the bound.

    Whether the search ended or not, and with a mean asked for that descent reaches, it finds one.
    """
    rng = np.random.default_rng(seed)
    num_experts, top_k, num_steps, num_both = int(rng.choice([64, 96, 128])), 6, 60, 3 * (seed % 2)
    odds = rng.dirichlet(np.full(num_experts, 0.5)) + 1e-3
    sets = [rng.choice(num_experts, top_k, replace=False, p=odds / odds.sum()) for _ in range(num_steps)]
    uses = np.zeros((num_steps, num_experts))
    for step, inside in enumerate(sets):
        uses[step, inside] = 1
    half = (num_experts - num_both) // 2
    copies = np.array([half + num_both, num_experts - half])
    bound, found, is_optimal, *_ = least_imbalance(sets, num_experts, copies, 1.0)
    signs = np.concatenate([np.ones(half), np.zeros(num_both), -np.ones(num_experts - num_both - half)])
    signs = rng.permutation(signs)

    column = np.ascontiguousarray(uses.T)  # of an expert; all numbers are whole
    sums, on_both = uses @ signs, uses @ (signs == 0)

    def differ(sums, on_both):
        return np.maximum(np.abs(sums) - on_both, 0).sum()

    least = differ(sums, on_both)
    for _ in range(20_000):
        one, other = rng.choice(num_experts, 2, replace=False)
        first, second = signs[one], signs[other]
        if first == second:
            continue
        moved = column[one] - column[other]
        after = sums + (second - first) * moved, on_both + (float(second == 0) - float(first == 0)) * moved
        if differ(*after) <= least:
            signs[one], signs[other] = second, first
            (sums, on_both), least = after, differ(*after)
    np.testing.assert_array_equal(sums, uses @ signs)
    np.testing.assert_array_equal(on_both, uses @ (signs == 0))
    mean = (top_k + least / num_steps) / 2
    assert bound <= mean + 1e-9
    assert not is_optimal or found == pytest.approx(bound)
