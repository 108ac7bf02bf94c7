"""Time of layer-steps of several nodes: against a simulation in small time steps, hand-worked cases, bounds."""

import numpy as np
import pytest

from moelab.cost_model.node_time import (
    entry_s,
    fluid,
    layer_steps_s,
    piece_factor,
    whole_expert_s,
    with_reads,
    with_slower_reads,
)
from moelab.domain.expert_times import BusyNodes, ExpertTimes


def times(busy=None, **changes):
    values = {
        "kernel": "generic/int4_g32/int8", "hidden_size": 64, "intermediate_size": 32, "expert_bytes": 1_000_000,
        "workers_of_node": 1, "layer_s": 1e-5, "token_s": 2e-6, "expert_s": {1: 1e-3, 2: 1.5e-3, 4: 3e-3},
        "piece_factor": {2: 1.1, 4: 1.2}, "read_gb_per_s": 30.0, "busy": busy or {}, "residual": 0.0, "num_calls": 1,
    }  # fmt: skip
    return ExpertTimes(**(values | changes))


def by_small_steps(work, parts=20_000):
    """The fluid as a clock would run it: all active nodes go on at the rate of the number that is active."""
    spent = np.zeros(work.shape[1])
    for row in range(work.shape[1]):
        left = (work[0, row] > 0).astype(float)
        tick = work[:, row].max() / parts
        while (left > 1e-12).any():
            busy = int((left > 1e-12).sum())
            left = np.where(left > 1e-12, left - tick / np.maximum(work[busy - 1, row], 1e-30), 0)
            spent[row] += tick
    return spent


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5])
def test_fluid_is_what_a_clock_gives(num_nodes):
    rng = np.random.default_rng(num_nodes)
    alone = rng.random((6, num_nodes)) * (rng.random((6, num_nodes)) < 0.8)
    slower = np.cumprod(np.concatenate([[1.0], 1 + rng.random(num_nodes - 1)]))
    work = slower[:, None, None] * alone
    assert fluid(work) == pytest.approx(by_small_steps(work), rel=2e-3, abs=1e-9)


def test_nodes_that_share_nothing_take_the_slowest():
    alone = np.random.default_rng(0).random((20, 4))
    assert fluid(np.stack([alone] * 4)) == pytest.approx(alone.max(axis=1))


def test_by_hand():
    """Two on node 0, one half on node 1; two at once halve the rate: 0.55 ms x 2, then what is left of 2 ms alone."""
    doubled = {2: BusyNodes(read_gb_per_s=1e9, kernel_share=0.5)}
    seconds = layer_steps_s(
        times(doubled), step=np.array([0, 0, 0]), node=np.array([0, 0, 1]), part=np.array([1, 1, 0.5]),
        num_tokens=np.ones(3), tokens_of_step=np.array([3]), num_nodes=2,
    )  # fmt: skip
    assert seconds == pytest.approx([1e-5 + 6e-6 + 1.1e-3 + (2e-3 - 0.55e-3)])
    in_turn = layer_steps_s(
        times(doubled), step=np.array([0, 0, 0]), node=np.array([0, 0, 1]), part=np.array([1, 1, 0.5]),
        num_tokens=np.ones(3), tokens_of_step=np.array([3]), num_nodes=2, in_turn=True,
    )  # fmt: skip
    assert in_turn == pytest.approx([1e-5 + 6e-6 + 2e-3])


def test_tokens_and_pieces_follow_straight_lines():
    t = times()
    assert whole_expert_s(t, [1, 3, 4, 6]) == pytest.approx([1e-3, 2.25e-3, 3e-3, 4.5e-3])
    assert piece_factor(t, [1, 0.5, 0.25, 0.125]) == pytest.approx([1, 1.1, 1.2, 1.2])
    assert 1.1 < float(piece_factor(t, 1 / 3)) < 1.2
    assert piece_factor(times(piece_factor={}), [0.3]) == pytest.approx([1])


def test_between_core_and_memory_the_slower_decides():
    busy = {2: BusyNodes(read_gb_per_s=10.0, kernel_share=1.0)}
    core = entry_s(times(busy), 1.0, 1, busy=2, read_gb_per_s=1000.0)
    memory = entry_s(times(busy), 1.0, 1, busy=2, read_gb_per_s=0.1)
    assert core == pytest.approx(1e-3, rel=1e-6)
    assert memory == pytest.approx(1e-2, rel=1e-3)
    assert entry_s(times(busy), 1.0, 1, busy=2, read_gb_per_s=30.0) == pytest.approx(1e-3)  # as alone
    rates = np.linspace(0.05, 50, 60)
    seconds = [float(entry_s(times(busy), 1.0, 1, busy=2, read_gb_per_s=r)) for r in rates]
    assert (np.diff(seconds) <= 0).all()
    assert entry_s(times(busy), 1.0, 1, busy=7) == entry_s(times(busy), 1.0, 1, busy=2)


def test_reading_is_counted_once():
    """What the model is made of, put together again: computing c and reading r, alone and three times as long."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        p, computing, read, slower = rng.uniform(2, 20), rng.uniform(0, 2), rng.uniform(0.1, 2), rng.uniform(1, 5)
        kernel = (computing**p + read**p) ** (1 / p)
        expected = (computing**p + (slower * read) ** p) ** (1 / p)
        assert with_slower_reads(kernel, read, slower * read, p) == pytest.approx(expected, rel=1e-6)
        faster = (computing**p + (read / slower) ** p) ** (1 / p)
        assert with_reads(kernel, read, read / slower, p) == pytest.approx(faster, rel=1e-6)
        assert with_slower_reads(kernel, read, read, p) == pytest.approx(kernel, rel=1e-9)
        assert with_slower_reads(kernel, read, read / 2, p) == pytest.approx(kernel, rel=1e-9)  # no faster than alone
        assert with_slower_reads(kernel, 2 * kernel, 2 * slower * kernel, p) == pytest.approx(slower * kernel)
    assert with_slower_reads(0.0, 1.0, 2.0, 4.0) == 0.0


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="one length"):
        layer_steps_s(
            times(), step=np.zeros(2, int), node=np.zeros(1, int), part=np.ones(2), num_tokens=np.ones(2),
            tokens_of_step=np.ones(1), num_nodes=1,
        )  # fmt: skip
    with pytest.raises(ValueError, match="expected 0 to 0"):
        layer_steps_s(
            times(), step=np.zeros(1, int), node=np.ones(1, int), part=np.ones(1), num_tokens=np.ones(1),
            tokens_of_step=np.ones(1), num_nodes=1,
        )  # fmt: skip
