"""The tree's optimum against every placement, its bounds at any time, and HiGHS' optimum."""

from itertools import combinations

import numpy as np
import pytest

from moelab.planner.imbalance_dual import NEVER, dual_value, raise_dual, settle
from moelab.planner.imbalance_tree import least_imbalance
from moelab.planner.placement_program import solve


def _totals(sets, num_experts, on_0):
    """Sum of the fullest node for every choice of ``on_0`` experts: {frozenset of those on node 0: sum}."""
    return {
        frozenset(chosen): sum(max(len(set(chosen) & set(s)), len(set(s) - set(chosen))) for s in map(list, sets))
        for chosen in combinations(range(num_experts), on_0)
    }


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


@pytest.mark.parametrize("seed", range(8))
def test_a_dual_is_below_every_placement_that_keeps_what_is_fixed(seed):
    """Whatever the multipliers: random ones, and those of the ascent; and it settles no better one away."""
    rng = np.random.default_rng(seed)
    num_experts, num_steps, on_0 = 9, 25, 4 + seed % 2
    sets = _random_sets(rng, num_experts, num_steps, (1, 7))
    sizes, experts = np.array([len(s) for s in sets]), np.concatenate(sets)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    first_use = np.concatenate([[0], np.cumsum(np.bincount(experts, minlength=num_experts))])
    uses = np.repeat(np.arange(num_steps), sizes)[np.argsort(experts, kind="stable")]
    fixed = np.zeros(num_experts, np.int8)
    fixed[:2] = rng.choice([-1, 1], 2)
    balance = float(2 * on_0 - num_experts)
    differ = {
        chosen: 2 * total - sizes.sum()
        for chosen, total in _totals(sets, num_experts, on_0).items()
        if all((e in chosen) == (fixed[e] == 1) for e in range(2))
    }
    least = min(differ.values())
    for _ in range(20):
        drawn = rng.uniform(-1, 1, num_steps)
        assert dual_value(offsets, first_use, uses, balance, fixed, drawn, rng.normal(), 1.0) <= least + 1e-9
    multipliers, signs, slope = np.empty(num_steps), np.empty(num_experts), np.empty(num_experts)
    scratch = (np.empty(num_steps), np.empty(num_experts), np.empty(num_experts))
    value, _ = raise_dual(
        offsets, experts, first_use, uses, balance, fixed, np.zeros(num_steps), 0.0, np.zeros(num_experts), np.inf, 40,
        25, 0.0, multipliers, signs, slope, *scratch,
    )  # fmt: skip
    assert NEVER < value <= least + 1e-9
    enough = least + 1e-6
    assert settle(fixed, slope, value, enough, on_0, num_experts - on_0)
    kept = [c for c in differ if all((e in c) == (fixed[e] == 1) for e in range(num_experts) if fixed[e])]
    assert {c for c in differ if differ[c] < enough} <= set(kept)


@pytest.mark.parametrize("seed", range(4))
def test_the_same_optimum_as_highs_and_a_bound_whenever_it_stops(seed):
    rng = np.random.default_rng(seed)
    sets, copies = _random_sets(rng, 18, 50, (3, 7)), np.array([9, 9])
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


def test_copies_and_more_nodes_are_refused():
    for copies in ([3, 4], [2, 2, 2]):
        with pytest.raises(ValueError, match="expected those of two nodes, 6 in all"):
            least_imbalance([np.arange(3)], 6, np.array(copies), 1)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_fixed_is_what_the_plain_loop_fixes(seed):
    """Machine code of this CPU beside Python, wide enough for vectors: LLVM once moved experts that were fixed."""
    rng = np.random.default_rng(seed)
    for num_experts in (*range(1, 20), *rng.integers(20, 400, 10).tolist()):
        free = rng.random() ** 3
        fixed = np.where(rng.random(num_experts) < free, 0, rng.choice([-1, 1], num_experts)).astype(np.int8)
        room = [int((fixed == side).sum()) + int(rng.integers(3)) for side in (1, -1)]
        slope, value = rng.normal(size=num_experts), [NEVER, 5.0][seed % 2]
        got, expected = fixed.copy(), fixed.copy()
        answer = settle(got, slope, value, 7.0, *room)
        assert answer == settle.py_func(expected, slope, value, 7.0, *room)
        np.testing.assert_array_equal(got, expected)
        assert ((fixed == 0) | (got == fixed)).all(), "what was fixed stays"


@pytest.mark.parametrize("seed", range(3))
def test_no_placement_is_below_the_bound_of_many_experts(seed):
    """At widths of real models, where no brute force goes: descent by swaps finds nothing below the bound."""
    rng = np.random.default_rng(seed)
    num_experts, top_k, num_steps = int(rng.choice([64, 96, 128])), 6, 60
    odds = rng.dirichlet(np.full(num_experts, 0.5)) + 1e-3
    sets = [rng.choice(num_experts, top_k, replace=False, p=odds / odds.sum()) for _ in range(num_steps)]
    uses = np.zeros((num_steps, num_experts))
    for step, inside in enumerate(sets):
        uses[step, inside] = 1
    bound, *_ = least_imbalance(sets, num_experts, np.array([num_experts // 2] * 2), 5.0)
    signs = rng.permutation(np.repeat([1.0, -1.0], num_experts // 2))
    least = np.abs(uses @ signs).sum()
    for _ in range(20_000):
        one, other = rng.choice(num_experts, 2, replace=False)
        signs[[one, other]] = signs[[other, one]]
        after = np.abs(uses @ signs).sum()
        if after > least:
            signs[[one, other]] = signs[[other, one]]
        least = min(least, after)
    assert bound <= (top_k + least / num_steps) / 2 + 1e-9
