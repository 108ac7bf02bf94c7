"""Spread of a measured figure: by hand, beside a naive twin, in documents old and new, and in no fingerprint."""

import json
from pathlib import Path

import numpy as np
import pytest

from moelab.domain.machine import Machine
from moelab.domain.spread import Spread

GOLDEN = Path(__file__).parent.parent / "golden" / "machine_v1.json"


def test_by_hand():
    found = Spread.of(np.array([10.0, 12.0, 11.0, 10.0, 14.0, 10.0, 20.0, 22.0, 24.0]))
    assert (found.low, found.middle, found.high, found.num_rounds) == (10.0, 12.0, 20.0, 9)
    assert found.drift == 1.0  # 11 in the first third, 22 in the last
    assert found.width == pytest.approx(10 / 12)
    assert found.text(1) == "quartiles 10.0 to 20.0, drift +100%"
    assert found.scaled(0.5) == Spread(low=5.0, middle=6.0, high=10.0, drift=1.0, num_rounds=9)
    assert Spread.of(np.array([3.0, 5.0])).drift == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_naive_twins(seed):
    rng = np.random.default_rng(seed)
    values = rng.uniform(1, 2, int(rng.integers(3, 40)))

    def at(wanted, share):
        ordered = sorted(wanted)
        place = share * (len(ordered) - 1)
        below = ordered[int(place)]
        return below + (place - int(place)) * (ordered[min(int(place) + 1, len(ordered) - 1)] - below)

    found, third = Spread.of(values), len(values) // 3
    assert (found.low, found.middle, found.high) == pytest.approx([at(values, each) for each in (0.25, 0.5, 0.75)])
    assert found.drift == pytest.approx(at(values[len(values) - third :], 0.5) / at(values[:third], 0.5) - 1)
    assert Spread.of(values[::-1]).drift == pytest.approx(1 / (1 + found.drift) - 1)


def test_steady_is_zero_wide():
    found = Spread.of(np.full(12, 3.0))
    assert (found.width, found.drift) == (0.0, 0.0)
    with pytest.raises(ValueError, match=r"a round has 0\.0, expected more than 0"):
        Spread.of(np.array([1.0, 0.0, 2.0]))


def with_spreads(machine):
    nodes = tuple(
        node.model_copy(update={"read_gb_per_s_spread": Spread(low=18, middle=20, high=23, drift=0.05, num_rounds=9)})
        for node in machine.nodes
    )
    spread = Spread(low=5.5e-4, middle=6e-4, high=6.9e-4, drift=-0.1, num_rounds=30)
    times = tuple(each.model_copy(update={"expert_s_spread": spread}) for each in machine.expert_times)
    return machine.model_copy(update={"nodes": nodes, "expert_times": times})


def test_machines_round_trip_and_files_of_before_load(tmp_path):
    old = Machine.load(GOLDEN)
    assert [node.read_gb_per_s_spread for node in old.nodes] == [None, None]
    assert old.expert_times[0].expert_s_spread is None
    assert "quartiles" not in repr(old)
    new = with_spreads(old)
    new.save(tmp_path / "machine.json")
    assert Machine.load(tmp_path / "machine.json") == new
    said = json.loads((tmp_path / "machine.json").read_text())["nodes"][0]["read_gb_per_s_spread"]
    assert said == {"low": 18, "middle": 20, "high": 23, "drift": 0.05, "num_rounds": 9}
    assert "reads 20.0 GB/s (quartiles 18.0 to 23.0, drift +5%)" in repr(new)
    assert "0.600 ms an expert (quartiles 0.550 to 0.690, drift -10%), residual 1.0%" in repr(new)


def test_no_cost_depends_on_it():
    old = Machine.load(GOLDEN)
    assert with_spreads(old).fingerprint() == old.fingerprint()
