"""The selection of prefetch_markov against sorting: sizes around the blocks, many ties, zeros, every width."""

import numpy as np
import pytest

from moelab.policies.prefetch_markov import BLOCK, best_scores, num_blocks
from tests.policies.test_policies_equal_twins import assert_equal_to_twin
from tests.seeded_traces import seeded_trace


@pytest.mark.parametrize("seed", range(60))
def test_is_what_sorting_finds(seed):
    draw = np.random.default_rng(seed)
    num_experts = int(draw.choice([1, 3, 15, 16, 17, 48, 130, 384, 400]))
    width = int(draw.integers(1, num_experts + 1)) if seed % 2 else min(8, num_experts)
    scores = draw.integers(0, int(draw.choice([2, 5, 1000])), num_experts).astype(np.float32)
    scores[draw.random(num_experts) < draw.choice([0, 0.5, 0.99])] = 0
    blocks = num_blocks(num_experts)
    padded = np.zeros(blocks * BLOCK, np.float32)
    padded[:num_experts] = scores / np.float32(7)
    maxima, values = np.zeros(blocks, np.int32), np.full(blocks * BLOCK + 1, -7, np.int32)
    found, best = np.zeros((2, num_experts + 1), np.int64)
    num_best = best_scores(padded.view(np.int32), maxima, values, found, best, width)
    expected = sorted(np.flatnonzero(scores), key=lambda expert: (-scores[expert], expert))[:width]
    assert best[:num_best].tolist() == expected


def test_more_experts_than_blocks_hold_equals_the_twin():
    trace = seeded_trace(5, num_layers=3, num_experts=150, top_k=5, num_requests=3, decode_tokens=25)
    assert_equal_to_twin(trace, "prefetch_markov", slots_per_layer=40, parameters={"largest": 4})
