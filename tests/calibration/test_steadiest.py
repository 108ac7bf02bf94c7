"""Which of several calibrations stays, by made-up machines and a clock that is told."""

import pytest

import moelab
from moelab.calibration.doubts import MOST_WIDTH, unsteady_of, width_of
from moelab.calibration.steadiest import steadiest
from moelab.domain.machine import Machine, NumaNode
from moelab.domain.spread import Spread


def machine_of(*widths):
    """A node for each width of its reads; None: nobody noted it."""
    spreads = [
        None if width is None else Spread(low=10 - 5 * width, middle=10, high=10 + 5 * width, drift=0, num_rounds=9)
        for width in widths
    ]
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=1, read_gb_per_s={1: 10.0}, read_gb_per_s_spread=spread)
        for n, spread in enumerate(spreads)
    )
    return Machine(name="test", source="calibration", nodes=nodes)


def test_the_width_is_the_widest_that_was_noted():
    assert width_of(machine_of(0.02, 0.3, None)) == pytest.approx(0.3)
    assert width_of(machine_of(None)) == 0
    for width in (MOST_WIDTH - 0.01, MOST_WIDTH + 0.01):
        assert (unsteady_of(machine_of(0.0, width)) is None) == (width_of(machine_of(0.0, width)) <= MOST_WIDTH)


@pytest.mark.parametrize(
    ("widths", "tries", "seconds", "most_seconds", "made", "kept"),
    [
        ([0.05, 0.01], 3, [1, 1], 100, 1, 0.05),  # steady at once: not again
        ([0.30, 0.08, 0.01], 3, [1, 1, 1], 100, 2, 0.08),
        ([0.30, 0.40, 0.20], 3, [1, 1, 1], 100, 3, 0.20),
        ([0.20, 0.40], 2, [1, 1], 100, 2, 0.20),  # the first was the better one
        ([0.30, 0.01], 1, [1, 1], 100, 1, 0.30),
        ([0.30, 0.01], 2, [50, 50], 99, 1, 0.30),  # a second one might not end in time
        ([0.30, 0.20, 0.01], 3, [10, 60, 10], 100, 2, 0.20),  # nor a third as long as the longest
        ([None, 0.01], 2, [1, 1], 100, 1, None),
    ],
)
def test_tries_end_with_a_steady_one_or_the_time(widths, tries, seconds, most_seconds, made, kept):
    now, numbers = [0.0], []

    def measure(number):
        numbers.append(number)
        now[0] += seconds[number]
        return machine_of(widths[number])

    found = steadiest(measure, tries=tries, most_seconds=most_seconds, clock=lambda: now[0])
    assert numbers == list(range(made))
    assert found == machine_of(kept)


def test_no_try_at_all_is_refused():
    with pytest.raises(ValueError, match="tries is 0, expected 1 or more"):
        moelab.calibrate(tries=0)
