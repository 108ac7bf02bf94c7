"""Rounds of two sides on a machine with a clock of its own, whose memory has two states: nothing here takes real time.

Both sides and the reads are bound by memory: work of W GB/s-seconds takes W over the rate of the moment, across changes
of the state. The first side takes 3 times what the second takes, whatever the state.
"""

from __future__ import annotations

import numpy as np
import pytest

from moelab.bench import rounds as rounds_module
from moelab.bench.read_reference import Read, experts_beside
from moelab.bench.rounds import MIN_ROUNDS, Side, take_rounds

STEP_GB, TIMES, NUM_EXPERTS, TOP_K = 0.2, 3.0, 24, 8
RATES = (33.0, 60.0)  # GB/s


class Machine:
    """The clock, and a memory that changes its state at ``changes`` (s) and loses ``decay`` of its rate a second.

    ``noise``: standard deviation of the logarithm of a time.
    """

    def __init__(self, monkeypatch, changes=(), decay=0.0, noise=0.0, seed=0):
        self.now, self.changes, self.decay, self.noise = 0.0, np.array(changes), decay, noise
        self.rng = np.random.default_rng(seed)
        self.log: list[str] = []
        self.experts: list[np.ndarray] = []  # of every step and read, in order
        monkeypatch.setattr(rounds_module, "time", self)

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def rate(self):
        return RATES[int((self.changes <= self.now).sum()) % 2] * np.exp(-self.decay * self.now)

    def move(self, gigabytes):
        """Takes the time of reading them; to a tenth of a millisecond at a time, across changes of the state."""
        start, left = self.now, gigabytes * np.exp(self.rng.normal(0, self.noise))
        while left > 1e-12:
            part = min(left, 1e-4 * self.rate())
            self.now += part / self.rate()
            left -= part
        return self.now - start

    def side(self, name, times, after_s=0.0):
        def forward(x, ids, gates):
            self.log.append(name)
            self.experts.append(ids[0])
            self.move(times * STEP_GB)

        return Side(forward, 0.0, after_s)

    def step(self):
        ids = self.rng.permutation(NUM_EXPERTS)[:TOP_K][None]
        return np.zeros((1, 4), np.float32), ids, np.ones(ids.shape, np.float32)

    def read(self, done, coming):
        chosen = experts_beside(self.rng, NUM_EXPERTS, done, coming, TOP_K)
        self.log.append("read")
        self.experts.append(chosen)
        rate = STEP_GB / self.move(STEP_GB)
        return Read(rate, np.array([rate]), 0)

    def rounds(self, seconds):
        sides = self.side("peer", TIMES / 0.9, after_s=0.08), self.side("ours", 1 / 0.9)
        return take_rounds(sides, self.step, self.read, seconds)


def test_reads_stand_before_between_and_after_and_sides_take_turns(monkeypatch):
    machine = Machine(monkeypatch)
    rounds = machine.rounds(1.0)
    assert machine.log[:9] == ["read", "peer", "read", "ours", "read", "ours", "read", "peer", "read"]
    assert machine.log[0::2] == ["read"] * len(rounds.reads)
    order = np.array(machine.log[1::2])
    assert (order[rounds.place[0]] == "peer").all()
    assert (order[rounds.place[1]] == "ours").all()
    for i in range(0, len(machine.experts) - 2, 2):  # no read of what a neighbouring step used
        assert not np.isin(machine.experts[i], machine.experts[i + 1]).any()
        assert not np.isin(machine.experts[i + 2], machine.experts[i + 1]).any()
    assert (rounds.num_distinct == TOP_K).all()
    assert machine.now >= 1.0


@pytest.mark.parametrize("seed", range(5))
def test_a_change_of_state_reaches_no_figure(monkeypatch, seed):
    """With it the ratio of a round would be anywhere from 3 x 33 / 60 to 3 x 60 / 33."""
    rng = np.random.default_rng(seed)
    machine = Machine(monkeypatch, np.cumsum(rng.uniform(0.3, 1.2, 100)), noise=0.01, seed=seed)
    rounds = machine.rounds(20.0)
    raw = rounds.seconds[0] / rounds.seconds[1]
    assert np.ptp(raw) > 1  # the changes did fall between two sides
    assert np.abs(rounds.ratios() / TIMES - 1).max() < 0.12  # one that fell within a read's allowance
    assert np.median(rounds.ratios()) == pytest.approx(TIMES, rel=0.01)
    row = rounds.beside_reads(0, TOP_K * STEP_GB / TOP_K / rounds.seconds[0])
    assert row["num_left_out"] == (~rounds.agree).sum() > 3
    assert row["num_agreeing"] is None
    assert row["percent_of_read_limit_per_state"] == pytest.approx((30, 30), rel=0.02)
    assert row["read_limit_gb_per_s_per_state"] == pytest.approx(RATES, rel=0.02)
    assert sum(row["num_steps_per_state"]) == rounds.agree.sum() == len(rounds.ratios())


def test_what_drifts_falls_on_both_sides_alike(monkeypatch):
    """A machine that loses a fifth of its rate in a second: whoever is always second would seem slower by 1 or 2%."""
    rounds = Machine(monkeypatch, decay=0.2).rounds(4.0)
    ratios, first = rounds.seconds[0] / rounds.seconds[1], rounds.place[0] < rounds.place[1]
    assert rounds.agree.all()
    biased = np.median(ratios[first]), np.median(ratios[~first])
    assert biased[0] < 0.985 * TIMES
    assert biased[1] > 1.002 * TIMES
    both = np.median(rounds.ratios()[: len(ratios) // 2 * 2])  # as many of each order
    assert abs(both / TIMES - 1) < max(abs(side / TIMES - 1) for side in biased) / 2


def test_a_machine_that_is_never_still_is_told_and_said(monkeypatch):
    """Hardly two reads agree: all rounds are in the figures, and the bench comes to its end."""
    machine = Machine(monkeypatch, noise=0.5)
    rounds = machine.rounds(1.0)
    assert rounds.agree.sum() < MIN_ROUNDS
    assert 3.0 <= machine.now < 3.8  # twice the time and a second, and the round that was begun
    assert len(rounds.ratios()) == rounds.seconds.shape[1] > MIN_ROUNDS
    row = rounds.beside_reads(0, STEP_GB / rounds.seconds[0])
    assert row["num_agreeing"] == rounds.agree.sum()
    assert row["num_left_out"] == 0
    assert row["percent_of_read_limit"] > 0


def test_slow_sides_have_five_rounds_however_short_the_time(monkeypatch):
    rounds = Machine(monkeypatch).rounds(0.0)
    assert rounds.seconds.shape == rounds.place.shape == (2, MIN_ROUNDS)
    assert len(rounds.ratios()) == MIN_ROUNDS
    assert len(rounds.reads) == 2 * MIN_ROUNDS + 1


@pytest.mark.parametrize(("rates", "agree"), [
    ([40, 44, 42], True), ([40, 46.5, 42], False), ([40, 42, 46.5], False), ([40, 44, 47], False),
    ([33, 33, 60], False), ([33, 60, 33], False),
])  # fmt: skip
def test_each_read_of_a_round_agrees_with_each(rates, agree):
    reads = tuple(Read(float(rate), np.array([rate]), 0) for rate in rates)
    one = np.ones((2, 1))
    rounds = rounds_module.Rounds(one, one, np.array([[0], [1]]), reads)
    assert rounds.agree.tolist() == [agree]
    other_loop = (*reads[:2], Read(reads[2].gb_per_s, reads[2].gb_per_s_of_node, 1))
    assert not rounds_module.Rounds(one, one, np.array([[0], [1]]), other_loop).agree.any()


@pytest.mark.parametrize(("first", "beside"), [(0, (40, 44)), (1, (44, 46))])
def test_a_step_stands_beside_the_reads_next_to_it(first, beside):
    """The first side at 21 GB/s, in the first or in the second place of a round; reads of 40, 44, 46 GB/s."""
    reads = tuple(Read(float(rate), np.array([rate]), 0) for rate in (40, 44, 46))
    rounds = rounds_module.Rounds(np.ones((2, 1)), np.ones((2, 1)), np.array([[first], [1 - first]]), reads)
    row = rounds.beside_reads(0, np.array([21.0]))
    limit = 2 / (1 / beside[0] + 1 / beside[1])
    assert row["read_limit_gb_per_s"] == pytest.approx(limit)
    assert row["percent_of_read_limit"] == pytest.approx(100 * 21 / limit)
    assert (row["num_left_out"], row["num_agreeing"]) == (0, int(rounds.agree.sum()))
