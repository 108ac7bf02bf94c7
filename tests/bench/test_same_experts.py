"""The same experts on one node and on all: as many of each, six steps by turns."""

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
def test_steps_have_as_many_of_each_node_and_times_are_of_both(placed, monkeypatch, of_each, places):
    same, ran = SameExperts(placed), []
    nodes = {id(same._one): 1, id(same._all): 2}

    def run(layers, steps):
        ran.append((nodes[id(layers[0])], steps[0].ravel().tolist()))
        return 1.0 / nodes[id(layers[0])]

    monkeypatch.setattr(placed, "run", run)
    assert same.times(of_each).tolist() == [[1.0] * 12, [0.5] * 12]
    assert [number for number, _ in ran] == ([1] * 7 + [2] * 7) * 2, "one that does not count and six, by turns"
    steps = [step.ravel()[places].tolist() for step in same.steps]
    first, second = ([half[-1], *half] for half in (steps[:6], steps[6:]))
    assert [experts for _, experts in ran] == [*first, *first, *second, *second]
    for _, experts in ran:
        assert sorted(expert % 2 for expert in experts) == sorted([0, 1] * of_each), "as many of each node"
    for step in same.steps:
        assert sorted(step.ravel() % 2) == [0, 0, 1, 1]
        assert len(set(step.ravel())) == 4


def test_it_runs(placed):
    same = SameExperts(placed)
    before = sum(same._all.bytes_of_node)
    assert (same.times() > 0).all()
    read = sum(same._all.bytes_of_node) - before
    assert read == 14 * 4 * placed.layout.expert_bytes, "fourteen steps of two experts of each node"


@pytest.mark.parametrize("seed", range(3))
def test_disturbed_calls_do_not_count(seed):
    rng = np.random.default_rng(seed)
    true = np.array([[2.0], [1.05]]) * rng.uniform(1, 1.2, 12)
    rounds = [true * np.where(rng.random((2, 12)) < 0.1, 3.0, 1.0) for _ in range(13)]
    found = scaling(rounds)
    assert found.value == pytest.approx(2 / 1.05)
    assert found.interval[0] <= found.value <= found.interval[1]
    alone = scaling(rounds[:1])
    assert alone.value > 0
    assert np.isnan(alone.interval).all()
