"""water_filled: the split by hand and against all splits, curves as simulations count them, the score held out."""

from itertools import product

import numpy as np
import pytest

from moelab.planner import water_filled
from moelab.planner.empty import empty
from moelab.planner.water_filled import divide
from moelab.simulator import simulate
from tests.seeded_traces import seeded_trace, trace_of_sets


def test_slots_go_where_they_hit():
    """Layer 0 goes round three experts: LRU hits with 3 slots, never with 2. Layer 1 uses one. 4 slots: 3 + 1."""
    sets = [each for step in range(40) for each in ([step % 3], [5])]
    trace = trace_of_sets(sets, num_layers=2, num_experts=8)
    plan = water_filled(trace, slots=4, least=0)
    assert plan.fast_tiers[0].slots_per_layer == (3, 1)
    assert plan.prediction["scored_on"] == "held-out steps (split in time)"
    assert plan.prediction["hit_rate_per_request_equal"] < plan.prediction["hit_rate_per_request"]
    assert water_filled(trace, slots=4, least=2).fast_tiers[0].slots_per_layer == (2, 2)


@pytest.mark.parametrize("seed", range(12))
def test_no_split_has_more_hits(seed):
    rng = np.random.default_rng(seed)
    num_layers, most = rng.integers(1, 4), rng.integers(1, 6)
    hits = np.concatenate([np.zeros((num_layers, 1), int), rng.integers(0, 9, (num_layers, most)).cumsum(1)], axis=1)
    least = int(rng.integers(0, most + 1))
    total = int(rng.integers(least * num_layers, num_layers * most + 1))
    share = divide(hits, total, least)
    assert sum(share) == total
    assert least <= min(share)
    assert max(share) <= most
    ways = [w for w in product(range(least, most + 1), repeat=int(num_layers)) if sum(w) == total]
    assert hits[range(num_layers), share].sum() == max(hits[range(num_layers), w].sum() for w in ways)


def test_score_is_that_of_the_simulator_on_held_out_requests():
    trace = seeded_trace(7, num_requests=10, decode_tokens=20, skew=1.5)
    plan = water_filled(trace, slots_per_layer=4, held_out=0.3, seed=2)
    share = plan.fast_tiers[0].slots_per_layer
    assert sum(share) == 12
    assert min(share) >= trace.header.top_k
    held_out = trace.requests(plan.planner["held_out_requests"])
    assert plan.prediction["scored_on"] == "held-out requests"
    by_hand = simulate(held_out, empty(trace, slots_per_layer=share), progress=False)
    equal = simulate(held_out, empty(trace, slots_per_layer=4), progress=False)
    assert plan.prediction["hit_rate_per_request"] == by_hand.hit_rate_per_request
    assert plan.prediction["reads_per_layer_step_equal"] == equal.reads_per_layer_step
    with pytest.raises(ValueError, match="least is 5 in each of 3 layers, expected 0 to 4 of 12"):
        water_filled(trace, slots=12, least=5)
