"""Moments make the calibration's calls: kinds that it made too, and each call what it says, by bytes and by hand."""

import os

import numpy as np
import pytest

from moelab.bench.placement.moment import NodeCalls
from moelab.bench.placement.placed import PlacedLayers
from moelab.bench.placement.upload_moment import UploadMoment
from moelab.calibration.beside_uploads import beside_uploads
from moelab.calibration.dealt_calls import DealtCalls, behind_one_s
from moelab.calibration.expert_calls import measure
from moelab.calibration.shelf import Shelf
from moelab.calibration.upload_calls import UploadCalls
from moelab.calibration.uploader import Uploader
from moelab.domain.plan_copies import whole_on
from moelab.kernels import ExpertLayout, Pool, RoutedExperts
from moelab.kernels.native import library
from moelab.kernels.pieces import num_units
from tests.placement_times import times

LAYOUT = ExpertLayout(64, 64, "int4_g32")
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
pytestmark = [
    pytest.mark.skipif(library()[0] is None, reason="native kernels are not built"),
    pytest.mark.skipif(cores < 2, reason="one core only"),
]


def layer_of(pool, node_of_expert):
    placed = Shelf(LAYOUT, len(node_of_expert), pool).placement(whole_on(np.array(node_of_expert), num_units(LAYOUT)))
    return RoutedExperts(LAYOUT, placed.addresses, "generic", "int8", pool, owner=placed, placement=placed)


def noted_calls(monkeypatch, of, names):
    """What is really called from here on: (name, arguments)."""
    made = []

    def noting(name, real):
        def noted(self, *given, **named):
            made.append((name, *given))
            return real(self, *given, **named)

        return noted

    for name in names:
        monkeypatch.setattr(of, name, noting(name, getattr(of, name)))
    return made


def test_a_moment_of_nodes_has_no_call_that_calibration_lacks(monkeypatch):
    made = noted_calls(monkeypatch, DealtCalls, ("call_s", "read_gb_per_s"))
    with Pool(2, virtual_nodes=2) as pool:
        measure(LAYOUT, pool, isa="generic", activation="int8", loop=0, seconds=0.0, on_round=lambda share: None)
        in_calibration = {(name, *nodes, "tokens", *tokens) for name, nodes, *tokens in made}
        made.clear()
        NodeCalls(PlacedLayers(LAYOUT, 1, 8, pool, isa="generic", activation="int8"), loop=0).make()
    in_moment = {(name, *nodes, "tokens", *tokens) for name, nodes, *tokens in made}
    assert len(made) == len(in_moment) == 7
    assert in_moment < in_calibration


def test_a_moment_of_uploads_has_the_calibrations_kinds(monkeypatch):
    """Kernels, reads and copies, each alone, and copies beside both of the others."""
    kinds = ("kernel", "read", "copy_alone_s", "beside_copies_s")
    made = noted_calls(monkeypatch, UploadCalls, kinds)
    given = {"core": None, "isa": "generic", "activation": "int8", "loop": 0, "seconds": 0.0}
    beside_uploads(times(), LAYOUT, on_round=lambda share: None, **given)
    in_calibration = {name for name, *_ in made}
    made.clear()
    with Pool(1) as pool, Uploader([np.ones(LAYOUT.expert_bytes, np.uint8)], None) as uploader:
        layer = layer_of(pool, [0] * 8)
        moment = UploadMoment.now(UploadCalls(layer, uploader, loop=0, rng=np.random.default_rng(0)), 10**6)
    names = [name for name, *_ in made]
    assert set(names) == in_calibration == set(kinds)
    assert names.count("beside_copies_s") == 2
    assert names.count("copy_alone_s") == 1
    assert moment.kernel_beside_s > 0, "until a call ended within the copies"


@pytest.mark.parametrize("seed", [0, 1])
def test_calls_on_nodes_read_those_nodes(seed):
    """By bytes that kernels counted: two experts of each node at work, and one somewhere before the clock."""
    with Pool(2, virtual_nodes=2) as pool:
        layer = layer_of(pool, [0, 1] * 4)
        calls, size = DealtCalls(layer, loop=0, rng=np.random.default_rng(seed)), LAYOUT.expert_bytes
        for nodes in ([1], [0], range(2)):
            before = np.array(layer.bytes_of_node)
            assert calls.call_s(nodes, 4) > 0
            experts = (np.array(layer.bytes_of_node) - before) / size
            two_each = [2 * (node in nodes) for node in range(2)]
            assert sorted((experts - two_each).tolist()) == [0, 1]
        assert calls.read_gb_per_s([1]) > 0
        with pytest.raises(ValueError, match="got 6 experts, expected 4 on each of 2 nodes"):
            DealtCalls(layer_of(pool, [0, 1] * 3), loop=0, rng=np.random.default_rng(0))


def test_only_the_second_call_is_timed(monkeypatch):
    """One of one token and one expert comes first, outside the clock."""
    seen, clock = [], [0.0]
    with Pool(2, virtual_nodes=2) as pool:
        layer = layer_of(pool, [0, 1] * 4)

        def forward(x, ids, gates):
            seen.append((x.shape, ids.tolist(), gates.sum(1).tolist()))
            clock[0] += 100.0 if len(seen) == 1 else 7.0

        monkeypatch.setattr(layer, "forward", forward)
        monkeypatch.setattr("time.perf_counter", lambda: clock[0])
        ids = np.array([[3, 5], [3, 5], [3, 5]])
        assert behind_one_s(layer, np.ones((8, 64), np.float32), ids, np.random.default_rng(0)) == 7.0
    (first, second) = seen
    assert first[0] == (1, 64)
    assert len(first[1][0]) == 1
    assert second == ((3, 64), ids.tolist(), [1.0, 1.0, 1.0])


def test_copies_beside_work_are_counted_within_the_window():
    """A window that no call ends in is repeated with twice the copies, or says that nothing is known."""
    asked = []

    class Copies:
        num_done, idle, ends = 0, True, [0.0]

        def put(self, blocks):
            asked.append(len(blocks))
            self.ends = np.arange(1, len(blocks) + 1) * 0.5
            self.idle = False

    copies = Copies()

    def work():
        copies.idle = len(asked) < 3  # two windows end before it does
        if not copies.idle:
            work.calls += 1
            copies.idle = work.calls > 4

    work.calls = 0
    with Pool(1) as pool:
        calls = UploadCalls(layer_of(pool, [0] * 4), copies, loop=0, rng=np.random.default_rng(0))
        seconds, copy_s = calls.beside_copies_s(work, 10, until_one=True)
        assert asked == [10, 20, 40]
        assert work.calls == 5
        assert seconds >= 0
        assert copy_s == 0.5
        asked.clear()
        nothing, copy_s = calls.beside_copies_s(work, 10)
    assert asked == [10]
    assert np.isnan(nothing)
    assert copy_s == 0.5
