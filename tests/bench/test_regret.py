"""Regret with an interval, beside a naive twin, known answers, and simulated machines whose true regret is known."""

from importlib import import_module

import numpy as np
import pytest

from moelab.analysis.bootstrap import resamples
from moelab.bench.placement.core_bound import CoreBound, PlanRow
from moelab.bench.placement.rank import ranking
from moelab.bench.placement.regret import Regret, regret
from moelab.bench.placement.same_experts import Scaling
from moelab.bench.placement.step_times import NUM_SAMPLES, StepTimes
from tests.placement_times import times


def of(measured):
    """Times of one step, [P, R]."""
    seconds = np.asarray(measured).T[:, :, None]
    return StepTimes(seconds, np.zeros(seconds.shape, np.int64))


def naive(measured, chosen):
    """Plan by plan and draw by draw."""

    def regret_of(rounds):
        middle = []
        for plan in measured:
            values = sorted(float(plan[each]) for each in rounds)
            half = len(values) // 2
            middle.append(values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2)
        return middle[chosen] / min(middle) - 1, middle.index(min(middle))

    num_rounds = measured.shape[1]
    value, best = regret_of(range(num_rounds))
    draws = []
    for counts in resamples(num_rounds, NUM_SAMPLES, 0):
        rounds = [number for number, times_drawn in enumerate(counts) for _ in range(int(times_drawn))]
        draws.append(regret_of(rounds)[0])
    draws.sort()
    at = 0.975 * (len(draws) - 1)
    high = draws[int(at)] + (at - int(at)) * (draws[int(at) + 1] - draws[int(at)])
    return value, (max(0.0, 2 * value - high), high), sum(each == 0 for each in draws) / len(draws), best


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_naive_twins(seed):
    rng = np.random.default_rng(seed)
    num_plans, num_rounds = int(rng.integers(2, 6)), int(rng.integers(2, 12))
    measured = rng.uniform(1, 1.1, num_plans)[:, None] * np.exp(0.05 * rng.standard_normal((num_plans, num_rounds)))
    chosen = int(rng.integers(num_plans))
    found = regret(of(measured), chosen)
    value, interval, is_best, best = naive(measured, chosen)
    assert (found.value, found.best) == (pytest.approx(value), best)
    assert found.interval == pytest.approx(interval)
    assert found.chosen_is_best == pytest.approx(is_best)
    assert found == regret(of(measured), chosen), "always the same draws"


def test_two_plans_by_hand():
    """Three rounds; the other's median is 1.0 but for draws of the third round twice or thrice: 7 of 27, and then 1.3.
    The chosen one always takes 1.1."""
    found = regret(of([[1.1, 1.1, 1.1], [1.0, 1.0, 1.3]]), 0)
    assert (found.value, found.best) == (pytest.approx(0.1), 1)
    assert found.interval == pytest.approx((0.1, 0.1))
    assert found.chosen_is_best == pytest.approx(7 / 27, abs=0.03)
    never = regret(of([[1.1, 1.1, 1.1], [1.0, 1.0, 1.0]]), 0)
    assert (never.interval, never.chosen_is_best) == (pytest.approx((0.1, 0.1)), 0.0)
    right = regret(of([[1.1, 1.1, 1.1], [1.0, 1.0, 1.0]]), 1)
    assert (right.value, right.interval, right.chosen_is_best) == (0.0, (0.0, 0.0), 1.0)


def test_what_disturbs_a_round_disturbs_all_plans():
    """Rounds that differ by a factor of three, plans always by 5%: regret is sure, although no median is."""
    speed = np.random.default_rng(0).uniform(1, 3, 9)
    found = regret(of(np.array([1.05, 1.0, 1.2])[:, None] * speed), 0)
    assert found.interval == pytest.approx((0.05, 0.05))


def test_one_round_has_no_interval():
    found = regret(of([[1.1], [1.0]]), 0)
    assert found.value == pytest.approx(0.1)
    assert np.isnan([*found.interval, found.chosen_is_best]).all()


def simulated(rng, plans, num_rounds, num_steps):
    """A machine whose speed is another in each turn, 4% of noise in a call, one in twenty disturbed for long."""
    shape = (num_rounds, len(plans), num_steps)
    turn = np.argsort(rng.random(shape), axis=2)
    speed = np.take_along_axis(np.broadcast_to(rng.uniform(1, 2, (num_rounds, 1, num_steps)), shape), turn, axis=2)
    noise = np.exp(0.04 * rng.standard_normal(shape)) * np.where(rng.random(shape) < 0.05, 3.0, 1.0)
    return StepTimes(plans[:, None] * rng.uniform(0.8, 1.2, num_steps) * speed * noise, turn).at_one_speed()


@pytest.mark.parametrize(("chosen", "true"), [(0, 0.0), (3, 0.025)])
@pytest.mark.parametrize("num_rounds", [5, 13])
def test_simulated_intervals_hold_the_true_regret(chosen, true, num_rounds):
    """The case of the log: 19 plans, two level at the top, as the bench measures them."""
    rng, sims = np.random.default_rng(chosen), 25
    plans = np.array([1.0, 1.0, *np.linspace(1.02, 1.10, 17)])
    assert plans[chosen] - 1 == pytest.approx(true)
    found = [regret(simulated(rng, plans, num_rounds, 40), chosen) for _ in range(sims)]
    held = np.mean([low - 1e-12 <= true <= high for low, high in (each.interval for each in found)])
    assert held >= 0.92, "0.97 to 1.00 in 150 simulations"
    if num_rounds == 13:
        assert max(each.value for each in found) < true + 0.02, "noise does not decide"


@pytest.mark.parametrize("seed", range(3))
def test_more_noise_says_less(seed):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((5, 9))
    few, many = (regret(of(np.linspace(1, 1.2, 5)[:, None] * np.exp(size * noise)), 0) for size in (0.01, 0.1))
    assert few.interval[1] - few.interval[0] < many.interval[1] - many.interval[0]
    assert few.chosen_is_best == 1.0
    assert many.chosen_is_best < 1.0


def test_it_stands_in_ranking_and_document():
    rng = np.random.default_rng(1)
    plans, speed = np.linspace(1e-3, 1.1e-3, 4)[:, None], rng.uniform(0.5, 2, (7, 1, 3))
    turn = np.broadcast_to(np.arange(3), (7, 4, 3))
    raw = StepTimes(speed * plans * np.exp(0.05 * rng.standard_normal((7, 4, 3))), turn)
    measured, predicted = raw.at_one_speed(), np.array([2.0, 1.0, 3.0, 4.0])
    found, as_timed = ranking(predicted, measured), ranking(predicted, raw)
    of_choice = regret(measured, 1)
    assert of_choice == Regret(found.regret, found.regret_interval, found.chosen_is_best, found.best)
    rows = [PlanRow(f"p{n}", 0.0, 1.0, 0.0, predicted[n], 1.0, 1e3 * measured.mean_s[n], (0.9, 1.1)) for n in range(4)]
    same = Scaling(1.9, (1.8, 2.0)), Scaling(1.95, (1.9, 2.0))
    core = CoreBound("t", "decode", "k", 2, 3, 2, raw, *same, rows, found, as_timed, found, {0.1: found})
    header = type("Header", (), {"num_layers": 4, "model": "m", "synthetic": False})
    trace = type("Trace", (), {"header": header})
    document = import_module("moelab.bench.placement.run")._core_document(core, trace, times())
    assert (document["scaling"], document["scaling_of_one_expert"]) == (1.9, 1.95)
    assert document["regret_interval"] == found.regret_interval
    assert document["regret_raw_interval"] == as_timed.regret_interval != found.regret_interval
    assert document["chosen_is_best_beforehand"] == found.chosen_is_best
    assert document["rows"][1]["measured_ms_per_token"] == pytest.approx(2e3 * measured.mean_s[1]), "two of four layers"
    (within,) = document["within_extra_memory"]
    assert (within["extra_memory"], within["regret"], within["pairs"]) == (0.1, found.regret, 6)
    again = StepTimes(1e-6 * np.array(document["step_us"]), np.array(document["turn"])).at_one_speed()
    assert regret(again, 1).interval == pytest.approx(found.regret_interval, abs=2e-3), "drawn again from what is kept"
