"""KTransformers' placements by hand, its permutation against torch, and the layer-balanced one against its bounds."""

import numpy as np
import pytest

from moelab.planner import FAST_TIER_PLANNERS, PLANNERS, frequency, front_loading, layer_balanced, random, uniform
from moelab.planner.random import randperm
from tests.seeded_traces import seeded_trace


def placed(plan):
    return [tuple(key) for key in np.argwhere(plan.resident("fast0")).tolist()]


def test_uniform_takes_the_first_ids_and_gives_the_rest_to_the_first_layers():
    plan = uniform(seeded_trace(1), slots=7)
    assert placed(plan) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert placed(uniform(seeded_trace(1), slots_per_layer=1)) == [(0, 0), (1, 0), (2, 0)]


def test_front_loading_fills_layers_from_the_first():
    assert placed(front_loading(seeded_trace(1), slots=14)) == [(0, e) for e in range(12)] + [(1, 0), (1, 1)]


@pytest.mark.parametrize(("num", "seed"), [(1, 42), (2, 42), (36, 42), (384 * 60, 42), (1000, 0), (977, 123456)])
def test_permutation_is_torch_s(num, seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    assert randperm(num, seed).tolist() == torch.randperm(num, generator=generator).tolist()


def test_random_takes_the_first_of_the_permutation():
    plan = random(seeded_trace(1), slots=5)
    assert placed(plan) == sorted(divmod(int(k), 12) for k in randperm(36, 42)[:5])
    assert plan.planner["placement_seed"] == 42
    assert placed(random(seeded_trace(1), slots=5, placement_seed=1)) != placed(plan)


def test_layer_balanced_keeps_its_bounds_and_meets_frequency_at_the_ends():
    trace = seeded_trace(3, num_requests=8, skew=2.0)
    for slots in (3, 9, 20):
        free = layer_balanced(trace, slots=slots, least=0, most=12)
        assert placed(free) == placed(frequency(trace, slots=slots))
    equal = layer_balanced(trace, slots=12, least=4, most=4)
    assert placed(equal) == placed(frequency(trace, slots_per_layer=4))
    numbers = layer_balanced(trace, slots=12, least=3, most=5).resident("fast0").sum(1)
    assert numbers.sum() == 12
    assert numbers.min() >= 3
    assert numbers.max() <= 5
    with pytest.raises(ValueError, match="do not hold 12 slots"):
        layer_balanced(trace, slots=12, least=5)


@pytest.mark.parametrize("name", sorted(FAST_TIER_PLANNERS))
def test_every_planner_fills_its_slots_and_says_what_was_held_out(name):
    trace = seeded_trace(4, num_requests=8)
    plan = PLANNERS[name](trace, slots_per_layer=3, held_out=0.25, seed=1, phase=None, machine=None)
    if name == "water_filled":  # an LRU fills its slots
        assert sum(plan.fast_tiers[0].slots_per_layer) == 9
        assert plan.policy.name == "lru"
    else:
        assert plan.resident("fast0").sum() == 9
        assert plan.policy.name == "static"
    assert plan.planner["name"] == name
    assert plan.prediction["scored_on"] == "held-out requests"
    assert 0 < plan.prediction["hit_rate_per_routing"] < 1
    with pytest.raises(ValueError, match="slots"):
        PLANNERS[name](trace, slots_per_layer=3, slots=9)
