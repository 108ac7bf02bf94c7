"""Rank correlation and regret of a choice, beside a naive twin and by hand."""

from itertools import combinations

import numpy as np
import pytest

from moelab.bench.placement.rank import ranking
from moelab.bench.placement.step_times import StepTimes


def step_times(seconds):
    return StepTimes(seconds, np.broadcast_to(np.arange(seconds.shape[2]), seconds.shape))


@pytest.mark.parametrize("seed", range(6))
def test_ranking_is_what_pairs_say(seed):
    rng = np.random.default_rng(seed)
    true = rng.random(9)
    predicted = true + 0.1 * rng.standard_normal(9)
    measured = step_times(true[:, None] * (1 + 0.05 * rng.standard_normal((11, 9, 3))))
    found = ranking(predicted, measured)
    agree = disagree = 0
    for i, j in combinations(range(9), 2):
        difference = measured.mean_s[i] - measured.mean_s[j]
        if abs(difference) <= 2 * np.std(measured.drawn_mean_s[:, i] - measured.drawn_mean_s[:, j]):
            continue
        same = (predicted[i] < predicted[j]) == (difference < 0)
        agree, disagree = agree + same, disagree + (not same)
    assert (found.num_pairs, found.num_untied) == (36, agree + disagree)
    assert found.tau == pytest.approx((agree - disagree) / (agree + disagree))
    assert found.regret == pytest.approx(measured.mean_s[np.argmin(predicted)] / measured.mean_s.min() - 1)
    assert found.regret >= 0


def test_equal_predictions_of_different_times_cost_and_noise_makes_ties():
    measured = np.array([[1.0] * 5, [2.0] * 5, [2.0, 2.1, 1.9, 2.05, 1.95]]).T[:, :, None]
    found = ranking(np.array([1.0, 1.0, 2.0]), step_times(measured))
    assert found.num_untied == 2  # the second and the third are a tie
    assert found.tau == pytest.approx(0.5)
    assert np.isnan(ranking(np.array([1.0, 2.0]), step_times(np.ones((5, 2, 1)))).tau)
    once = ranking(np.array([1.0, 2.0]), step_times(np.array([[[1.0], [2.0]]])))
    assert (once.num_untied, once.regret) == (0, 0.0), "nobody knows how sure one round is"
