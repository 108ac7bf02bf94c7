"""The cost of recording counts the rare dear steps by how often they occur, and nothing that the machine did."""

from __future__ import annotations

import numpy as np
import pytest

import moelab
from moelab.bench.recording import mean_cost, recording_cost
from moelab.engine.recorder import FLUSH_TOKENS, PENDING_TOKENS


def test_dear_steps_count_and_interruptions_do_not():
    """90 steps of 1 us, one of them interrupted, and 10 copies of 5 and 15 us: (90 x 1 + 100) / 100 us."""
    difference = np.concatenate([np.full(89, 1e-6), [3e-3], np.tile([5e-6, 15e-6], 5)])
    dear = np.arange(100) >= 90
    cost, (low, high) = mean_cost(difference, dear, np.random.default_rng(0))
    assert cost == pytest.approx(1.9e-6)
    assert low < cost < high < 2.5e-6


@pytest.mark.parametrize(("to_disk", "num_copies"), [(False, 4), (True, 4)])
def test_every_copy_of_a_real_engine_is_seen(to_disk, num_copies):
    """64 steps of 16 sequences: four copies, two of them written."""
    assert (PENDING_TOKENS, FLUSH_TOKENS) == (256, 512)
    with moelab.load(moelab.shipped("nano/model")) as engine:
        cost = recording_cost(engine, 64, 16, to_disk)
    assert cost.num_copies == num_copies
    assert cost.step_ms > 0
    assert cost.interval_percent[0] <= cost.overhead_percent <= cost.interval_percent[1]
