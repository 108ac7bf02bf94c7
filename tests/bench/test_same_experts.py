"""The same experts on each node and on all: as many of each, three steps by turns."""

import os

import numpy as np
import pytest

from moelab.bench.placement.placed import PlacedLayers
from moelab.bench.placement.same_experts import SameExperts, scaling
from moelab.kernels import ExpertLayout, Pool
from moelab.kernels.native import library

pytestmark = [
    pytest.mark.skipif(library()[0] is None, reason="native kernels are not built"),
    pytest.mark.skipif(
        not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core only"
    ),
]


@pytest.fixture
def placed():
    with Pool(2, virtual_nodes=2) as pool:
        yield PlacedLayers(ExpertLayout(64, 64, "int4_g32"), 2, 8, pool, isa="generic", activation="int8")


@pytest.mark.parametrize(("of_each", "places"), [(2, [0, 1, 2, 3]), (1, [0, 2])])
def test_steps_have_as_many_of_each_node_and_times_are_of_each_and_of_both(placed, monkeypatch, of_each, places):
    same, ran = SameExperts(placed), []
    kind = {id(layer): number for number, layer in enumerate(same._layers)}

    def run(layers, steps):
        ran.append((kind[id(layers[0])], steps[0].ravel().tolist()))
        return [1.0, 1.5, 0.5][ran[-1][0]]

    monkeypatch.setattr(placed, "run", run)
    assert same.times(of_each).tolist() == [[1.0] * 12, [1.5] * 12, [0.5] * 12]
    assert [number for number, _ in ran] == ([0] * 4 + [1] * 4 + [2] * 4) * 4, "one that does not count and three"
    steps = [step.ravel()[places].tolist() for step in same.steps]
    turns = [[turn[-1], *turn] * 3 for turn in (steps[first : first + 3] for first in range(0, 12, 3))]
    assert [experts for _, experts in ran] == [experts for turn in turns for experts in turn]
    for _, experts in ran:
        assert sorted(expert % 2 for expert in experts) == sorted([0, 1] * of_each), "as many of each node"
    for step in same.steps:
        assert sorted(step.ravel() % 2) == [0, 0, 1, 1]
        assert len(set(step.ravel())) == 4


def test_it_runs(placed):
    same = SameExperts(placed)
    before = np.array([layer.bytes_of_node for layer in same._layers])
    assert (same.times() > 0).all()
    read = np.array([layer.bytes_of_node for layer in same._layers]) - before
    every = 16 * 4 * placed.layout.expert_bytes  # four turns of four steps of two experts of each node
    assert read.tolist() == [[every, 0], [0, every], [every // 2, every // 2]]


@pytest.mark.parametrize("seed", range(3))
def test_disturbed_calls_do_not_count(seed):
    rng = np.random.default_rng(seed)
    true = np.array([[2.0], [2.4], [1.2]]) * rng.uniform(1, 1.2, 12)
    rounds = [true * np.where(rng.random((3, 12)) < 0.1, 3.0, 1.0) for _ in range(13)]
    found = scaling(rounds)
    assert found.value == pytest.approx(2.2 / 1.2), "of both nodes, though one is slower"
    assert found.interval[0] <= found.value <= found.interval[1]
    alone = scaling(rounds[:1])
    assert alone.value > 0
    assert np.isnan(alone.interval).all()
