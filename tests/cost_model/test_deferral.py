"""Deferral against a schedule of tasks on two machines, the model without it, and its bounds."""

import numpy as np
import pytest

from moelab.cost_model.deferral import deferred_step_s
from moelab.cost_model.hybrid import Rates, hybrid


def scheduled(cpu, fast, dense, share):
    """End of the last task: each starts when its machine is free and what it needs has ended."""
    free, ended = {"cpu": 0.0, "device": 0.0}, {}

    def task(name, machine, seconds, *needs):
        start = max([free[machine], *(ended[need] for need in needs if need in ended)])
        ended[name] = free[machine] = start + seconds

    last = len(cpu) - 1
    for layer in range(len(cpu)):
        outputs = [("now", layer - 1), ("fast", layer - 1), ("later", layer - 2)]
        task(("dense", layer), "device", dense, *outputs)
        task(("now", layer), "cpu", cpu[layer] * (1 - share * (layer < last)), ("dense", layer))
        task(("fast", layer), "device", fast[layer], ("dense", layer))
        task(("later", layer), "cpu", cpu[layer] * share * (layer < last), ("now", layer))
    return max(ended["now", last], ended["fast", last], ended.get(("later", last - 1), 0.0))


@pytest.mark.parametrize("seed", range(20))
def test_equals_a_schedule_of_tasks_and_keeps_its_bounds(seed):
    draw = np.random.default_rng(seed)
    shape = (5, int(draw.integers(1, 9)))
    cpu, fast = draw.exponential(1.0, shape), draw.exponential(draw.choice([0.0, 0.3, 2.0]), shape)
    dense, share = float(draw.choice([0.0, 0.2, 1.0])), float(draw.choice([0.0, 0.25, 0.5, 1.0]))
    got = deferred_step_s(cpu, fast, dense, share)
    expected = [scheduled(*rows, dense, share) for rows in zip(cpu, fast, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    exact = (dense + np.maximum(cpu, fast)).sum(1)
    assert (got <= exact + 1e-12).all()
    assert (got >= np.maximum(cpu.sum(1), dense * shape[1]) - 1e-12).all()


def test_nothing_deferred_is_the_hybrid_model():
    draw = np.random.default_rng(1)
    misses, hits = draw.integers(0, 9, (2, 6, 4)) * 10**6
    time = hybrid(misses, hits, np.zeros((6, 4)), Rates(20.0, fast_read_gb_per_s=50.0, layer_overhead_s=1e-4))
    np.testing.assert_allclose(deferred_step_s(time.cpu_s, time.fast_s, 1e-4, 0.0), time.step_s, rtol=1e-12)


def test_it_hides_the_dense_path_behind_the_experts():
    """Equal times, half deferred, many layers: nearly half of the step is hidden."""
    cpu = np.ones((1, 1000))
    assert deferred_step_s(cpu, 0 * cpu, 1.0, 0.0)[0] == pytest.approx(2000)
    assert deferred_step_s(cpu, 0 * cpu, 1.0, 0.5)[0] == pytest.approx(1500, rel=1e-3)
    assert deferred_step_s(cpu, 0 * cpu, 0.5, 1.0)[0] == pytest.approx(1000, rel=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(3), np.ones(3), 0.0, 0.5), "expected both"),
        ((np.ones((2, 3)), np.ones((2, 2)), 0.0, 0.5), "expected both"),
        ((np.ones((2, 3)), np.ones((2, 3)), 0.0, 1.5), "share is 1.5"),
        ((-np.ones((2, 3)), np.ones((2, 3)), 0.0, 0.5), "negative"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        deferred_step_s(*arguments)
