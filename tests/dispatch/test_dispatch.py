"""dispatch against every assignment, Hall's formula, hand-worked ties, and as a first-class function."""

from itertools import product

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from moelab.dispatch import BOUNDED, EXACT, NO_COPY, SIGNATURE, assign, dispatch, lower_bound, scratch_length


def tiers(mask):
    return [tier for tier in range(mask.bit_length()) if mask >> tier & 1]


def least_maximum(masks, sizes, slowness):
    """The best over all assignments."""
    best = np.inf
    for choice in product(*map(tiers, masks)):
        loads = np.zeros(len(slowness))
        np.add.at(loads, list(choice), sizes)
        best = min(best, (loads * slowness).max())
    return best


def hall(masks, num_tiers):
    """max over sets U of tiers of ceil(jobs with no copy outside U / |U|)."""
    return max(-(-sum(mask & ~union == 0 for mask in masks) // union.bit_count()) for union in range(1, 1 << num_tiers))


def consistent(answer, masks, sizes, slowness):
    """Every job on a copy of its own, loads added up from the tiers said."""
    loads = np.zeros(len(slowness))
    for mask, size, tier in zip(masks, sizes, answer.tier_of, strict=True):
        assert mask >> int(tier) & 1
        loads[tier] += size
    assert np.allclose(answer.loads, loads * slowness, rtol=1e-12)
    return answer


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_equal_sizes_any_copies_and_rates(data):
    num_tiers = data.draw(st.integers(1, 4))
    masks = data.draw(st.lists(st.integers(1, 2**num_tiers - 1), max_size=7))
    slowness = data.draw(st.lists(st.sampled_from([0.5, 1.0, 1.25, 3.0]), min_size=num_tiers, max_size=num_tiers))
    sizes = [24] * len(masks)
    answer = consistent(assign(masks, num_tiers=num_tiers, sizes=24, slowness=slowness), masks, sizes, slowness)
    assert answer.is_exact
    assert answer.maximum == pytest.approx(least_maximum(masks, sizes, np.array(slowness)), rel=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whole_experts_beside_pieces(data):
    """Jobs with one copy may have any size (pieces of cut experts): the choice of the others stays optimal."""
    num_tiers = data.draw(st.integers(2, 4))
    single = data.draw(st.lists(st.tuples(st.integers(0, num_tiers - 1), st.integers(1, 50)), max_size=5))
    free = data.draw(st.lists(st.integers(1, 2**num_tiers - 1), max_size=6))
    masks = [1 << tier for tier, _ in single] + free
    sizes = [size for _, size in single] + [16] * len(free)
    answer = consistent(assign(masks, num_tiers=num_tiers, sizes=sizes), masks, sizes, np.ones(num_tiers))
    assert answer.is_exact
    assert answer.maximum == least_maximum(masks, sizes, np.ones(num_tiers))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_unequal_sizes(data):
    num_tiers = data.draw(st.integers(1, 4))
    jobs = data.draw(st.lists(st.tuples(st.integers(1, 2**num_tiers - 1), st.integers(1, 40)), max_size=7))
    masks, sizes = [m for m, _ in jobs], [s for _, s in jobs]
    slowness = np.array(data.draw(st.lists(st.sampled_from([0.5, 1.0, 1.3]), min_size=num_tiers, max_size=num_tiers)))
    answer = consistent(assign(masks, num_tiers=num_tiers, sizes=sizes or 1, slowness=slowness), masks, sizes, slowness)
    assert answer.is_exact
    assert answer.maximum == pytest.approx(least_maximum(masks, sizes, slowness), rel=1e-12)


@pytest.mark.parametrize("num_tiers", [2, 3, 5, 8])
def test_hall(num_tiers):
    rng = np.random.default_rng(num_tiers)
    for num_jobs in (1, 6, 16, 40, 300):
        for _ in range(60):
            masks = rng.integers(1, 2**num_tiers, num_jobs)
            masks &= rng.integers(1, 2**num_tiers, num_jobs) | 1 << rng.integers(0, num_tiers, num_jobs)
            masks[masks == 0] = 1  # few copies, many on tier 0: paths are needed
            assert assign(masks, num_tiers=num_tiers).maximum == hall([int(m) for m in masks], num_tiers)


def test_two_nodes_closed_form():
    """Single copies or both: max(a0, a1, ceil(all / 2))."""
    rng = np.random.default_rng(2)
    for _ in range(300):
        masks = rng.integers(1, 4, rng.integers(1, 17))
        a0, a1 = (masks == 1).sum(), (masks == 2).sum()
        assert assign(masks, num_tiers=2).maximum == max(a0, a1, -(-len(masks) // 2))


def test_a_path_moves_earlier_jobs():
    """The last job can only go where the first sat; the first moves on, the second after it: 1 each."""
    answer = assign([0b011, 0b110, 0b001], num_tiers=3)
    assert answer.tier_of.tolist() == [1, 2, 0]
    answer = assign([0b0011, 0b0110, 0b1100, 0b0011], num_tiers=4)
    assert sorted(answer.loads) == [1, 1, 1, 1]


def test_ties_go_to_the_lower_tier_and_are_the_same_every_time():
    assert assign([0b11, 0b11, 0b11], num_tiers=2).tier_of.tolist() == [0, 1, 0]
    assert assign([0b11, 0b11], num_tiers=2, sizes=[3, 3]).tier_of.tolist() == [0, 1]
    masks = np.random.default_rng(0).integers(1, 256, 16)
    first = assign(masks, num_tiers=8, sizes=np.arange(1, 17))
    assert all((assign(masks, num_tiers=8, sizes=np.arange(1, 17)).tier_of == first.tier_of).all() for _ in range(5))


def test_sixteen_unequal_jobs_on_eight_tiers_or_says_that_it_was_cut_off():
    """Never below the average or the largest job; a hard instance answers BOUNDED, with a good one still."""
    rng = np.random.default_rng(5)
    exact = 0
    for _ in range(20):
        sizes = rng.integers(1, 100, 16)
        answer = assign(np.full(16, 255), num_tiers=8, sizes=sizes)
        floor = max(sizes.max(), -(-sizes.sum() // 8))
        assert answer.maximum >= floor
        assert answer.maximum <= (4 / 3) * floor + 1e-9 or answer.is_exact
        exact += answer.is_exact
    assert exact >= 5
    sizes = rng.integers(10**6, 2 * 10**6, 40)
    hard = assign(np.full(40, 255), num_tiers=8, sizes=sizes)
    assert not hard.is_exact
    assert sizes.sum() / 8 <= hard.bound <= hard.maximum
    assert hard.maximum < 1.05 * hard.loads.mean()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_lower_bound_is_below_every_assignment(data):
    """And is what Hall's theorem says where jobs may be divided: a linear program agrees."""
    num_tiers = data.draw(st.integers(1, 4))
    jobs = data.draw(st.lists(st.tuples(st.integers(1, 2**num_tiers - 1), st.integers(1, 40)), min_size=1, max_size=6))
    masks, sizes = np.array([m for m, _ in jobs]), np.array([s for _, s in jobs])
    slowness = np.array(data.draw(st.lists(st.sampled_from([0.5, 1.0, 1.3]), min_size=num_tiers, max_size=num_tiers)))
    bound = lower_bound(masks, sizes, slowness)
    best = least_maximum(masks.tolist(), sizes, slowness)
    assert bound <= best * (1 + 1e-12)
    assert bound >= divided(masks, sizes, slowness) - 1e-9
    assert assign(masks, num_tiers=num_tiers, sizes=sizes, slowness=slowness).bound == pytest.approx(best)


def divided(masks, sizes, slowness):
    """Least maximum where every job may be divided among its tiers."""
    places = [(job, tier) for job, mask in enumerate(masks.tolist()) for tier in tiers(mask)]
    whole = np.zeros((len(masks), len(places) + 1))
    loads = np.zeros((len(slowness), len(places) + 1))
    for column, (job, tier) in enumerate(places):
        whole[job, column], loads[tier, column] = 1, sizes[job] * slowness[tier]
    loads[:, -1] = -1
    cost = np.r_[np.zeros(len(places)), 1]
    return linprog(cost, A_ub=loads, b_ub=np.zeros(len(slowness)), A_eq=whole, b_eq=np.ones(len(masks))).fun


def test_the_lower_bound_of_many_tiers_looks_at_single_ones_and_all():
    masks = np.array([1, 1, 1, 0b1111111111], np.int64)
    assert lower_bound(masks, np.array([5, 5, 5, 1]), np.ones(10)) == 15
    assert lower_bound(np.full(40, 1023), np.full(40, 3), np.ones(10)) == 12


def test_first_class_and_without_a_copy():
    """Another compiled function takes it as a typed value: the calling loop is compiled once."""

    @numba.njit(numba.int64(numba.types.FunctionType(SIGNATURE), *SIGNATURE.args))
    def through(function, masks, sizes, slowness, tier_of, loads, scratch):
        return function(masks, sizes, slowness, tier_of, loads, scratch)

    loads, tier_of, scratch = np.empty(2), np.empty(3, np.int32), np.empty(scratch_length(3, 2), np.int64)
    arguments = np.ones(3, np.int64), np.ones(2), tier_of, loads, scratch
    assert through(dispatch.dispatcher, np.array([1, 3, 1]), *arguments) == EXACT
    assert loads.tolist() == [2, 1]
    assert dispatch(np.array([1, 0, 1]), *arguments) == NO_COPY
    assert dispatch(np.array([1, 4, 1]), *arguments) == NO_COPY
    assert {EXACT, BOUNDED, NO_COPY} == {0, 1, -1}


@pytest.mark.parametrize(
    ("masks", "options", "text"),
    [
        ([1, 0], {"num_tiers": 2}, "job 1 has copies on mask 0b0"),
        ([1, 4], {"num_tiers": 2}, "expected one or more of the 2 tiers"),
        ([1], {"num_tiers": 0}, "expected 1 to 62"),
        ([1], {"num_tiers": 1, "sizes": 0}, "not positive"),
        ([1], {"num_tiers": 1, "slowness": 0.0}, "not positive"),
    ],
)
def test_refusals(masks, options, text):
    with pytest.raises(ValueError, match=text):
        assign(masks, **options)
