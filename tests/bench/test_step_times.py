"""Times step by step: a naive twin, drift and disturbed calls of a made-up machine, and the order of calls."""

from statistics import median

import numpy as np
import pytest

from moelab.analysis.bootstrap import resamples
from moelab.bench.placement.step_times import FEWEST_ROUNDS, NUM_SAMPLES, StepTimes, by_turns


@pytest.mark.parametrize("seed", range(4))
def test_they_are_the_naive_twins(seed):
    rng = np.random.default_rng(seed)
    num_rounds, num_plans, num_steps = (int(number) for number in rng.integers(2, 7, 3))
    seconds = rng.uniform(1, 2, (num_rounds, num_plans, num_steps))
    found = StepTimes(seconds)

    def means(rounds):
        return [
            sum(median(seconds[r][p][s] for r in rounds) for s in range(num_steps)) / num_steps
            for p in range(num_plans)
        ]

    assert found.mean_s == pytest.approx(means(range(num_rounds)))
    assert found.drawn_mean_s.shape == (NUM_SAMPLES, num_plans)
    counts = resamples(num_rounds, NUM_SAMPLES, 0)
    for draw in (0, 7, NUM_SAMPLES - 1):
        rounds = [number for number, often in enumerate(counts[draw]) for _ in range(int(often))]
        assert found.drawn_mean_s[draw] == pytest.approx(means(rounds))
    for r in range(num_rounds):
        for s in range(num_steps):
            slow = median(seconds[r, p, s] / median(seconds[:, p, s]) for p in range(num_plans))
            assert found.at_one_speed().seconds[r, :, s] == pytest.approx(seconds[r, :, s] / slow)


@pytest.mark.parametrize("seed", range(3))
def test_drift_and_disturbed_calls_do_not_count(seed):
    """A machine that changes its speed by a factor of two from step to step, and loses one call in twenty for long."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(1e-3, 1.1e-3, (19, 30))
    seconds = true * rng.uniform(1, 2, (15, 1, 30)) * np.where(rng.random((15, 19, 30)) < 0.05, 5.0, 1.0)
    found = StepTimes(seconds).at_one_speed().mean_s
    assert found / found.mean() == pytest.approx(true.mean(1) / true.mean(), rel=1e-3)
    plain = seconds.mean(axis=(0, 2))
    assert np.abs(plain / plain.mean() - true.mean(1) / true.mean()).max() > 0.02, "a mean would not do"


def test_one_round_says_nothing_of_how_sure_it_is():
    assert StepTimes(np.ones((1, 3, 2))).drawn_mean_s.shape == (0, 3)


def test_every_plan_runs_a_step_before_the_next():
    ran, ends = [], []

    def run(plan, step):
        ran.append((plan, step))
        return 100.0 * len(ends) + 10 * plan + step

    found = by_turns(run, 3, 4, seconds=0.0, after_round=lambda: ends.append(len(ran)))
    assert ends == [12 * (number + 1) for number in range(FEWEST_ROUNDS + 1)]
    turns = [ran[at : at + 3] for at in range(0, len(ran), 3)]
    assert [{plan for plan, _ in turn} for turn in turns] == [{0, 1, 2}] * len(turns)
    assert [{step for _, step in turn} for turn in turns] == [{at % 4} for at in range(len(turns))]
    assert len({tuple(plan for plan, _ in turn) for turn in turns}) > 3, "in another order each time"
    assert found.num_rounds == FEWEST_ROUNDS, "the first is left out"
    assert found.seconds[0].tolist() == [[100.0 + 10 * p + s for s in range(4)] for p in range(3)]


def test_it_goes_on_for_as_long_as_it_may():
    found = by_turns(lambda plan, step: 1.0, 1, 1, seconds=0.05)
    assert found.num_rounds > 50
