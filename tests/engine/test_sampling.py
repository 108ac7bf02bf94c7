"""Filters of the sampler against hand-worked distributions."""

import math

import pytest
import torch

from moelab.engine.sampling import Sampling, pick, probabilities

LOGITS = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (Sampling(1.0, top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(1.0, top_k=9), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(1.0, top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(1.0, top_p=0.01), [1, 0, 0, 0]),
        (Sampling(1.0, top_k=3, top_p=0.6), [4 / 7, 3 / 7, 0, 0]),
    ],
)
def test_probabilities(sampling, expected):
    torch.testing.assert_close(probabilities(LOGITS, sampling), torch.tensor(expected, dtype=torch.float32))


def test_greedy_takes_the_largest_whatever_the_seed():
    assert {pick(LOGITS, Sampling(seed=s), Sampling(seed=s).generator(0)) for s in range(5)} == {0}


def test_draws_follow_the_distribution():
    sampling = Sampling(1.0, top_k=3, seed=1)
    generator = sampling.generator(0)
    draws = torch.tensor([pick(LOGITS, sampling, generator) for _ in range(4000)])
    share = torch.bincount(draws, minlength=4) / 4000
    for got, p in zip(share.tolist(), [4 / 9, 3 / 9, 2 / 9, 0], strict=True):
        assert abs(got - p) <= 4 * math.sqrt(p * (1 - p) / 4000)
