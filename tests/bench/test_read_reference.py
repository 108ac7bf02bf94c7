"""The loop of the reads follows the memory: a machine of two states in which another loop is the best in each."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from moelab.bench import read_reference
from moelab.bench.memory_states import beside_reads, pair_steps
from moelab.bench.read_reference import Choice, ReadReference, experts_beside, nearest_choice

EXPERT_BYTES, NUM_EXPERTS = 10**8, 16
RATES = {"slow": (32.0, 36.0, 30.0), "fast": (62.0, 50.0, 55.0)}  # GB/s of each loop: 1 is best, then 0


class Memory:
    """Stands for the machine: the state of each call of a read is written down beforehand."""

    def __init__(self, monkeypatch, states, seed=0):
        self.states, self.num_reads, self.num_choices = states, 0, 0
        self.rng = np.random.default_rng(seed)
        monkeypatch.setattr(read_reference, "read_once", self.read_once)
        monkeypatch.setattr(read_reference, "read_limit", self.read_limit)

    @property
    def state(self):
        return self.states[min(self.num_reads, len(self.states) - 1)]

    def read_once(self, addresses, num_bytes, loop, pool):
        seconds = len(addresses) * num_bytes / RATES[self.state][loop] / 1e9
        self.num_reads += 1
        return seconds * float(self.rng.normal(1, 0.01))

    def read_limit(self, addresses, num_bytes, pool, rounds, node_of_address):
        self.num_choices += 1
        rates = RATES[self.state]
        best = int(np.argmax(rates))
        return SimpleNamespace(loop=best, loop_name=f"loop {best}", gb_per_s=rates[best])

    def reference(self):
        nodes = np.zeros(NUM_EXPERTS, int)
        reference = ReadReference(np.arange(NUM_EXPERTS), EXPERT_BYTES, nodes, None, placed=False)
        reference.choose(np.arange(NUM_EXPERTS))
        return reference


@pytest.mark.parametrize("seed", range(5))
def test_each_state_is_read_by_its_own_best_loop(monkeypatch, seed):
    """A kernel at 90% of the best loop is at 90% in both states; by the first loop throughout it would be at 112%."""
    rng = np.random.default_rng(seed)
    states = np.repeat(["slow", "fast"] * 4, rng.integers(15, 40, 8)).tolist()
    memory = Memory(monkeypatch, states, seed)
    reference = memory.reference()
    reads, kernel = [reference.read(np.arange(8))], []
    while memory.num_reads < len(states):
        kernel.append(0.9 * max(RATES[memory.state]))
        reads.append(reference.read(np.arange(8)))
    steps = pair_steps(np.array([r.gb_per_s for r in reads]), np.array([r.choice for r in reads]))
    row = beside_reads(steps, np.array(kernel))
    assert row["percent_of_read_limit_per_state"] == pytest.approx((90, 90), abs=1)
    assert row["read_limit_gb_per_s_per_state"] == pytest.approx((36, 62), rel=0.02)
    assert steps.num_left_out <= 8
    assert memory.num_choices == 2  # each state's loop is taken up again, not measured again
    assert [choice.loop_name for choice in reference.choices] == ["loop 1", "loop 0"]


def test_one_slow_read_is_no_other_state(monkeypatch):
    memory = Memory(monkeypatch, ["fast"] * 6 + ["slow"] + ["fast"] * 6)
    reference = memory.reference()
    reads = [reference.read(np.arange(8)) for _ in range(9)]
    assert {read.choice for read in reads} == {0}
    assert min(read.gb_per_s for read in reads) > 55


def test_a_choice_during_a_change_is_made_again(monkeypatch):
    memory = Memory(monkeypatch, ["slow", "fast", "fast", "fast"])
    reference = memory.reference()
    assert memory.num_choices == 2
    assert reference.choices[0].loop_name == "loop 0"


def test_a_restless_machine_is_measured_a_few_times_only(monkeypatch):
    monkeypatch.setitem(RATES, "slow", (10.0, 11.0, 12.0))
    memory = Memory(monkeypatch, ["slow"])
    reference = memory.reference()
    for factor in 1.5 ** np.arange(12):
        RATES["slow"] = (10.0 * factor, 11.0 * factor, 12.0 * factor)
        for _ in range(3):
            reference.read(np.arange(8))
    assert memory.num_choices == read_reference.MAX_CHOICES


def test_the_nearest_choice_is_nearest_in_ratio():
    choices = [Choice(0, "", 10.0), Choice(1, "", 40.0)]
    assert [nearest_choice(choices, rate) for rate in (5, 19, 21, 100)] == [0, 0, 1, 1]


@pytest.mark.parametrize("seed", range(10))
def test_experts_between_two_steps_are_neithers(seed):
    rng = np.random.default_rng(seed)
    done, coming = rng.permutation(48)[:8], rng.permutation(48)[:8]
    chosen = experts_beside(rng, 48, done, coming, 8)
    assert len(set(chosen.tolist())) == 8
    assert not set(chosen.tolist()) & {*done.tolist(), *coming.tolist()}
    few = experts_beside(rng, 16, np.arange(8), np.arange(4, 12), 8)  # four are free, then those that are to come
    assert set(few.tolist()) == set(range(8, 16))
