"""The program's optimum against every placement, its bound against annealing, and both on real routing."""

from itertools import combinations, product

import numpy as np
import pytest

from moelab.planner import anneal
from moelab.planner.balanced_packing import balanced_packing
from moelab.planner.certificate import PARTS, certificate, sample_of_layer
from moelab.planner.node_plan import masks_of_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.placement_program import solve
from moelab.planner.replicate import balanced_with_replicas
from moelab.planner.step_maximum import TierTimes
from moelab.sources import open_source
from tests.planner.naive_nodes import least_maximum
from tests.seeded_traces import seeded_trace
from tests.shared_traces import SHARED_TRACES, needs_shared_traces


@pytest.mark.parametrize(("nodes", "copies"), [(2, [3, 3]), (2, [4, 3]), (2, [4, 4]), (3, [2, 2, 2]), (3, [3, 3, 2])])
@pytest.mark.parametrize("seed", [0, 1])
def test_optimum_against_every_placement(nodes, copies, seed):
    rng = np.random.default_rng(seed)
    sets = [np.sort(rng.permutation(6)[: rng.integers(2, 5)]) for _ in range(12)]
    times = TierTimes.equal_nodes(nodes)
    best = np.inf
    for masks in product(range(1, 1 << nodes), repeat=6):
        if all(sum(mask >> n & 1 for mask in masks) <= copies[n] for n in range(nodes)):
            best = min(best, np.mean([least_maximum([masks[e] for e in inside], times) for inside in sets]))
    bound, found, is_optimal, lp = solve(sets, 6, np.array(copies), 30)
    assert is_optimal
    assert bound == pytest.approx(best)
    assert found == pytest.approx(best)
    beaten, nothing, is_optimal, _ = solve(sets, 6, np.array(copies), 30, beat=best)
    assert (nothing, is_optimal) == (None, True)  # there is none better than the best
    assert beaten == pytest.approx(best)
    better, found, is_optimal, _ = solve(sets, 6, np.array(copies), 30, beat=best + 1 / 12)
    assert (better, found, is_optimal) == (pytest.approx(best), pytest.approx(best), True)
    assert lp <= best + 1e-9
    assert lp >= np.mean([len(inside) / nodes for inside in sets]) - 1e-9


def test_annealing_reaches_what_is_proven():
    trace = seeded_trace(3, num_requests=8, num_experts=16, top_k=4, decode_tokens=30)
    problem = node_problem(trace, nodes=2, extra_memory=0.125, steps="token", held_out=0.5)
    seen = certificate(problem, balanced_with_replicas(problem), layer=1, num_steps=60, time_limit_s=30)
    assert seen.is_optimal
    assert seen.num_steps == 60
    assert seen.bound - 1e-9 <= seen.annealed <= 1.02 * seen.bound
    assert seen.gap == pytest.approx(seen.annealed / seen.bound - 1)
    assert (seen.milp is None) == (seen.annealed == pytest.approx(seen.bound))


def test_the_plan_is_scored_on_the_same_steps():
    """By a naive mean over the sampled sets; annealing them alone is never worse."""
    trace = seeded_trace(5, num_requests=8, num_experts=16, top_k=4, decode_tokens=30)
    plan = anneal(trace, nodes=2, extra_memory=0.125, steps="token", held_out=0.5, moves_per_expert=200)
    problem = node_problem(trace, nodes=2, extra_memory=0.125, steps="token", held_out=0.5)
    masks = masks_of_plan(plan)
    seen = certificate(problem, masks, layer=1, num_steps=40, time_limit_s=10, seed=3)
    sample = sample_of_layer(problem.train, 1, 40, seed=3)
    naive = [
        least_maximum([masks[1, key - 16] for key in sample.keys[a:b]], problem.times)
        for a, b in zip(sample.offsets, sample.offsets[1:], strict=False)
    ]
    assert seen.plan == pytest.approx(np.mean(naive))
    assert seen.plan_gap == pytest.approx(seen.plan / seen.bound - 1)
    assert seen.floor == 2
    assert seen.floor <= seen.bound <= seen.annealed + 1e-9 <= seen.plan + 2e-9


def test_nothing_is_solved_at_the_floor():
    """Copies of everything everywhere: ceil(K / N), which needs no proof."""
    trace = seeded_trace(5, num_requests=4, num_experts=16, top_k=4)
    problem = node_problem(trace, nodes=2, extra_memory=1.0, held_out=0)
    seen = certificate(problem, np.full(problem.shape, 3), layer=0, num_steps=20)
    assert (seen.bound, seen.gap, seen.plan_gap, seen.is_optimal, seen.lp) == (seen.floor, 0, 0, True, None)


def test_a_limit_that_is_too_short_leaves_a_gap_and_says_so():
    trace = seeded_trace(3, num_requests=8, num_experts=64, top_k=8, decode_tokens=40, skew=0.3, persistence=0.0)
    problem = node_problem(trace, nodes=2, steps="token", held_out=0.5)
    seen = certificate(problem, balanced_with_replicas(problem), layer=0, num_steps=100, time_limit_s=0.5)
    assert not seen.is_optimal
    assert seen.time_limit_s == 0.5
    assert 4 <= seen.bound <= seen.annealed


def test_programs_of_parts_bound_what_one_program_does_not(monkeypatch):
    """Without time for all steps together: the mean over parts left out is a bound, and near the optimum."""
    trace = seeded_trace(3, num_requests=8, num_experts=12, top_k=4, decode_tokens=30)
    problem = node_problem(trace, nodes=3, steps="token", held_out=0.5)  # three nodes: HiGHS
    masks = balanced_with_replicas(problem)
    whole = certificate(problem, masks, layer=1, num_steps=32, time_limit_s=60, moves_per_expert=400)
    assert (whole.is_optimal, whole.num_programs, whole.solver) == (True, 1, "HiGHS")
    sizes = []

    def without_time_for_all(sets, *arguments, **choices):
        sizes.append(len(sets))
        return (0.0, None, False, None) if len(sets) == 32 else solve(sets, *arguments, **choices)

    monkeypatch.setattr("moelab.planner.certificate.solve", without_time_for_all)
    seen = certificate(problem, masks, layer=1, num_steps=32, time_limit_s=60, moves_per_expert=400)
    assert sizes == [32, *[24] * PARTS]
    assert seen.num_programs == PARTS
    assert not seen.is_optimal or seen.bound == pytest.approx(seen.annealed)
    assert seen.floor <= seen.bound <= whole.bound + 1e-9
    assert whole.bound <= 1.05 * seen.bound
    assert seen.annealed == whole.annealed


@pytest.mark.parametrize("share", [0.0, 1 / 6])
def test_two_percent_are_proven_first(share, monkeypatch):
    """Of a bad annealing nothing is shown but what is found; of a good one the first pass says 2%, the second more."""
    trace = seeded_trace(3, num_requests=8, num_experts=12, top_k=4, decode_tokens=30, skew=0.3)
    problem = node_problem(trace, nodes=2, extra_memory=share, steps="token", held_out=0.5)
    masks = balanced_with_replicas(problem)
    options = {"layer": 1, "num_steps": 36, "time_limit_s": 60}
    whole = certificate(problem, masks, **options)
    sample = sample_of_layer(problem.train, 1, 36, seed=0)
    inside = np.zeros((36, 12))
    for step, (a, b) in enumerate(zip(sample.offsets, sample.offsets[1:], strict=False)):
        inside[step, sample.keys[a:b] - 12] = 1
    num_on_0, num_both = int((masks[1] == 1).sum()), int((masks[1] == 3).sum())
    best = np.inf
    for both in combinations(range(12), num_both):
        for on_0 in combinations(np.setdiff1d(range(12), both), num_on_0):
            here, copied = inside[:, on_0].sum(1), inside[:, both].sum(1)
            other = inside.sum(1) - here - copied
            half = np.ceil((here + other + copied) / 2)
            best = min(best, np.maximum(np.maximum(here, other), half).mean())
    assert (whole.solver, whole.is_optimal) == ("tree", True)
    assert whole.bound == pytest.approx(best)
    first = certificate(problem, masks, **options, end_at=0.05)
    assert first.annealed == whole.annealed
    assert first.gap <= 0.05
    assert first.bound <= whole.bound + 1e-9
    if whole.annealed > whole.floor * 1.05:
        assert not first.is_optimal, "5% are enough, so the optimum was not asked for"
        assert first.bound < whole.bound
    monkeypatch.setattr("moelab.planner.certificate._annealed_alone", lambda problem, sample, masks, *rest: masks)
    bad = certificate(problem, masks, **options)
    assert bad.annealed == bad.plan
    assert bad.bound == pytest.approx(whole.bound)
    assert bad.is_optimal
    assert bad.milp == (None if bad.annealed == pytest.approx(bad.bound) else pytest.approx(bad.bound))


def test_sample_and_refusals():
    trace = seeded_trace(3, num_requests=4)
    problem = node_problem(trace, nodes=2, steps="token", held_out=0)
    sample = sample_of_layer(problem.train, 2, 10, seed=0)
    assert sample.layer.tolist() == [2] * 10
    masks = 1 << balanced_packing(problem.train.uses, 2)
    unequal = node_problem(trace, nodes=2, node_rates=[1.0, 2.0], held_out=0)
    for wrong, options, text in (
        (unequal, {"layer": 0}, "of one rate"),
        (problem, {"layer": 0, "num_steps": 257}, "expected up to 6 and 256"),
        (problem, {"layer": 3}, "layer 3 routes nothing"),
    ):
        with pytest.raises(ValueError, match=text):
            certificate(wrong, masks, **options)


@needs_shared_traces
@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("gpt_oss_20b_fingerprint", 256),
        ("deepseek_v2_lite_esft", 256),
        ("bigmoeonedge_qwen3_30b/qwen.route.csv", 156),  # all that it recorded
    ],
    ids=["E32", "E64", "E128"],
)
def test_within_two_percent_of_the_dual_bound_on_real_routing(path, steps):
    trace = open_source(SHARED_TRACES / path).load()
    problem = node_problem(trace, nodes=2, steps="token", held_out=0)
    layer = trace.header.num_layers // 2
    seen = certificate(problem, balanced_with_replicas(problem), layer=layer, num_steps=steps, time_limit_s=60)
    assert (seen.num_steps, seen.solver) == (steps, "tree")
    assert seen.gap <= 0.02
