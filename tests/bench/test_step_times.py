"""Times step by step: a naive twin, drift and disturbed calls of a made-up machine, and the order of calls."""

from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest

from moelab.analysis.bootstrap import resamples
from moelab.bench.placement import step_times
from moelab.bench.placement.step_times import FEWEST_ROUNDS, NUM_SAMPLES, StepTimes, by_turns


@pytest.mark.parametrize("seed", range(4))
def test_they_are_the_naive_twins(seed):
    rng = np.random.default_rng(seed)
    num_rounds, num_plans, num_steps = (int(number) for number in rng.integers(2, 7, 3))
    seconds = rng.uniform(1, 2, (num_rounds, num_plans, num_steps))
    turn = np.argsort(rng.random(seconds.shape), axis=2)
    found = StepTimes(seconds, turn)

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
    polished = found.at_one_speed().seconds
    for _ in range(4):
        usual = [[median(seconds[:, p, s]) for s in range(num_steps)] for p in range(num_plans)]
        divided = seconds.copy()
        for r in range(num_rounds):
            for number in range(num_steps):
                in_turn = [(p, turn[r, p].tolist().index(number)) for p in range(num_plans)]
                slow = median(seconds[r, p, s] / usual[p][s] for p, s in in_turn)
                for p, s in in_turn:
                    divided[r, p, s] = seconds[r, p, s] / slow
        seconds = divided
    assert polished == pytest.approx(seconds)
    some = found.of(np.array([num_plans - 1, 0]))
    assert some.mean_s.tolist() == [found.mean_s[-1], found.mean_s[0]]
    assert np.array_equal(some.turn[:, 1], turn[:, 0])


@pytest.mark.parametrize("seed", range(3))
def test_drift_and_disturbed_calls_do_not_count(seed):
    """A machine that changes its speed by a factor of two from turn to turn, and loses one call in twenty for long."""
    rng, shape = np.random.default_rng(seed), (15, 19, 30)
    true, turn = rng.uniform(1e-3, 1.1e-3, shape[1:]), np.argsort(rng.random(shape), axis=2)
    speed = np.take_along_axis(np.broadcast_to(rng.uniform(1, 2, (15, 1, 30)), shape), turn, axis=2)
    seconds = true * speed * np.where(rng.random(shape) < 0.05, 5.0, 1.0)
    found = StepTimes(seconds, turn).at_one_speed().mean_s
    assert found / found.mean() == pytest.approx(true.mean(1) / true.mean(), rel=1e-3)
    plain = seconds.mean(axis=(0, 2))
    assert np.abs(plain / plain.mean() - true.mean(1) / true.mean()).max() > 0.02, "a mean would not do"


def test_one_round_says_nothing_of_how_sure_it_is():
    assert StepTimes(np.ones((1, 3, 2)), np.zeros((1, 3, 2), np.int64)).drawn_mean_s.shape == (0, 3)


@pytest.mark.parametrize(("num_plans", "num_steps"), [(3, 4), (5, 2)])
def test_every_plan_runs_a_step_in_a_turn_and_all_in_a_round(num_plans, num_steps):
    ran, ends = [], []

    def run(plan, step):
        ran.append((plan, step))
        return 100.0 * len(ends) + 10 * plan + step

    found = by_turns(run, num_plans, num_steps, seconds=0.0, after_round=lambda: ends.append(len(ran)))
    of_round = num_plans * num_steps
    assert ends == [of_round * (number + 1) for number in range(FEWEST_ROUNDS + 1)]
    turns = [ran[at : at + num_plans] for at in range(0, len(ran), num_plans)]
    assert [{plan for plan, _ in turn} for turn in turns] == [set(range(num_plans))] * len(turns)
    assert {len({step for _, step in turn}) for turn in turns} == {min(num_plans, num_steps)}, "each at another step"
    assert len({tuple(plan for plan, _ in turn) for turn in turns}) > 3, "in another order each time"
    assert found.num_rounds == FEWEST_ROUNDS, "the first is left out"
    every = {(plan, step) for plan in range(num_plans) for step in range(num_steps)}
    for number in range(FEWEST_ROUNDS):
        calls = ran[ends[number] : ends[number + 1]]
        assert set(calls) == every
        for place, (plan, step) in enumerate(calls):
            assert found.turn[number, plan, step] == place // num_plans
            assert found.seconds[number, plan, step] == 100.0 * (number + 1) + 10 * plan + step


def test_it_goes_on_for_as_long_as_it_may(monkeypatch):
    clock = [0.0]

    def run(plan, step):
        clock[0] += 0.001
        return 0.001

    monkeypatch.setattr(step_times, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    found = by_turns(run, 2, 5, seconds=0.0955)
    assert found.num_rounds == 9, "ten rounds of 10 ms, the first is left out"
