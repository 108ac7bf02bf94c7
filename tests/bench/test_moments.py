"""Calibration's own calls beside a run: what they say is what went into them, and predictions by hand."""

import os

import numpy as np
import pytest

from moelab.bench.placement import with_uploads
from moelab.bench.placement.moment import Moment, NodeCalls, now_of
from moelab.bench.placement.placed import Entries, PlacedLayers
from moelab.bench.placement.upload_moment import UploadMoment
from moelab.domain.expert_times import BusyNodes, NodeTimes
from moelab.domain.trace import NO_EXPERT
from moelab.kernels import ExpertLayout, Pool
from moelab.kernels.native import library
from tests.placement_times import times

cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
needs_native = pytest.mark.skipif(library()[0] is None, reason="native kernels are not built")
needs_two_cores = pytest.mark.skipif(cores < 2, reason="one core only")


def moment(t, expert_s, **changes):
    """Kernels of ``expert_s`` an expert, that have half of their rate beside copies of 0.25 GB/s."""
    rate = t.expert_bytes / expert_s / 1e9
    values = {"read_alone": t.read_gb_per_s, "copy_alone": 0.5, "read_beside": rate / 2, "copy_beside_read": 0.25,
              "copy_beside_kernel": 0.25}  # fmt: skip
    values = {f"{name}_gb_per_s": value for name, value in values.items()}
    return UploadMoment(**(values | {"kernel_s": 4 * expert_s, "kernel_beside_s": 8 * expert_s} | changes))


@pytest.mark.parametrize("predict", [with_uploads.predict, with_uploads.predict_calibrated])
def test_prediction_with_uploads_by_hand(predict):
    """One layer, one step: 2 misses of 1 token, 1 copy. Kernels have half of their rate until the copy is done."""
    ids = np.array([[0, 1]], np.uint16)
    t = times(layer_s=0.0, token_s=0.0, sharpness=60.0)
    now, decided = moment(t, 1e-5), with_uploads.Decided([[ids]], [[[0]]])
    copy_s = t.expert_bytes / 0.25e9
    done = min(copy_s, 4e-5)
    assert predict(decided, t, now) == pytest.approx(done + max(0, 2 - done / 2e-5) * 1e-5, rel=0.02)
    assert with_uploads.bytes_alone_s(decided, t, 2.5) == pytest.approx(3 * t.expert_bytes / 2.5e9)
    assert with_uploads.kernel_gb_per_s(t, now) == pytest.approx(now.read_beside_gb_per_s)
    nothing = np.full((1, 2), NO_EXPERT, np.uint16)  # hits alone: the second step waits for the copy, which is alone
    waits = with_uploads.Decided([[nothing], [nothing]], [[[0]], [[]]])
    assert predict(waits, t, now) == pytest.approx(t.expert_bytes / 0.5e9)
    late = t.model_copy(update={"uploads": t.uploads.model_copy(update={"start_s": 3e-6})})
    assert predict(waits, late, now) == pytest.approx(t.expert_bytes / 0.5e9 + 3e-6)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_kernels_beside_nothing_read_as_fast_as_the_moment_allows(factor):
    """No copies: an expert that reading decides takes as much longer as the read loop does now."""
    nothing_copied = with_uploads.Decided([[np.array([[0, 1, 2]], np.uint16)]], [[[]]])
    t = times(layer_s=0.0, token_s=0.0, sharpness=60.0)
    t = t.model_copy(update={"read_gb_per_s": t.expert_bytes / t.expert_s[1] / 1e9})
    now = moment(t, 1e-5, read_alone_gb_per_s=factor * t.read_gb_per_s, read_beside_gb_per_s=0.1)
    seconds = with_uploads.predict_calibrated(nothing_copied, t, now)
    assert seconds == pytest.approx(3 * t.expert_s[1] / factor, rel=0.02)


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_kernels_of_the_moment_are_the_moments(factor):
    """The calibrated kernel took as long at another hour: its call of the moment decides, with its overhead."""
    nothing_copied = with_uploads.Decided([[np.array([[0, 1, 2]], np.uint16)]], [[[]]])
    t = times(layer_s=2e-6, token_s=1e-6)
    now = moment(t, 1e-5, kernel_s=3e-6 + 4e-5 * factor)
    assert with_uploads.predict(nothing_copied, t, now) == pytest.approx(3e-6 + 3 * 1e-5 * factor)


def test_moments_of_uploads_have_means():
    """Of rates by the time that they stand for."""
    t = times()
    both = moment(t, 1e-5).mean(moment(t, 1e-5, copy_alone_gb_per_s=1.5, kernel_s=8e-5))
    assert both.copy_alone_gb_per_s == pytest.approx(2 / (1 / 0.5 + 1 / 1.5))
    assert both.kernel_s == pytest.approx(6e-5)
    assert both.read_alone_gb_per_s == pytest.approx(t.read_gb_per_s)


def test_a_calibration_is_a_moment_without_kernels():
    t = times()
    known = UploadMoment.as_calibrated(t)
    assert (known.read_alone_gb_per_s, known.copy_alone_gb_per_s) == (10.0, 4.0)
    assert (known.read_beside_gb_per_s, known.copy_beside_read_gb_per_s) == (5.0, 2.0)
    with pytest.raises(ValueError, match="no figures of copies, expected some"):
        UploadMoment.as_calibrated(times(uploads=None))


def calls_of(t, rate):
    """What a machine of these times would have in a moment: predictions of the calls themselves."""

    def call_s(nodes, tokens):
        node = np.repeat(np.arange(nodes), 2)
        work = Entries(np.zeros(2 * nodes, int), node, np.ones(2 * nodes), np.full(2 * nodes, tokens),
                       np.full(2 * nodes, t.expert_bytes), np.array([tokens]), 2)  # fmt: skip
        return work.seconds(t)

    return Moment(t.read_gb_per_s, rate, {n: call_s(1, n) for n in (1, 4)}, {n: call_s(2, n) for n in (1, 2, 4)})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("nodes", ["alike", "unequal"])
def test_a_slower_machine_is_found_from_its_calls(seed, nodes):
    """Calibrated at one speed, run at another, of kernels and of reads: what the calls say predicts any step of it."""
    rng = np.random.default_rng(seed)
    unequal = (NodeTimes(workers=1, factor={1: 1.0}, read_gb_per_s=10.0),
               NodeTimes(workers=1, factor={1: 1.25}, read_gb_per_s=8.0))  # fmt: skip
    calibrated = times(sharpness=rng.uniform(2, 12), nodes=unequal if nodes == "unequal" else ())
    slower, share, alone, together = rng.uniform(0.7, 1.6), rng.uniform(0.5, 1.2), *rng.uniform(0.6, 1.4, 2)
    first = 5.0 * together
    true = calibrated.model_copy(
        update={
            "expert_s": {n: slower * s for n, s in calibrated.expert_s.items()},
            "read_gb_per_s": alone * calibrated.read_gb_per_s,
            "nodes": tuple(
                each.model_copy(update={"read_gb_per_s": alone * each.read_gb_per_s}) for each in calibrated.nodes
            ),
            "busy": {2: BusyNodes(read_gb_per_s=first, kernel_share=share)},
        }
    )
    slowest = first * (0.8 if nodes == "unequal" else 1.0)
    now = now_of(calibrated, (calls_of(true, slowest),) * 2, 2)
    assert now.times.expert_s == pytest.approx(true.expert_s)
    assert now.times.read_gb_per_s == pytest.approx(true.read_gb_per_s)
    assert now.slowest_gb_per_s == pytest.approx(slowest)
    assert now.mean_gb_per_s == pytest.approx(first * (0.9 if nodes == "unequal" else 1.0))
    assert now.times.busy[2].kernel_share == pytest.approx(share)
    for on_first in range(6):  # all on one node, or on both in any parts
        node = np.array([0] * on_first + [1] * (5 - on_first))
        work = Entries(np.zeros(5, int), node, np.ones(5), np.ones(5), np.full(5, 1), np.array([1]), 2)
        assert work.seconds(now.times) == pytest.approx(work.seconds(true))


def test_rates_of_two_moments_are_by_time_and_other_numbers_of_nodes_are_refused():
    t = times()
    now = now_of(t, (calls_of(t, 2.0), calls_of(t, 6.0)), 2)
    assert now.slowest_gb_per_s == now.mean_gb_per_s == pytest.approx(3.0)
    with pytest.raises(ValueError, match=r"calibrated on \[2\] busy nodes, expected 3"):
        now_of(t, (calls_of(t, 2.0),), 3)


@needs_native
@needs_two_cores
def test_calls_of_the_moment_are_of_all_nodes_alike():
    layout = ExpertLayout(64, 64, "int4_g32")
    with Pool(2, virtual_nodes=2) as pool:
        placed = PlacedLayers(layout, 2, 10, pool, isa="generic", activation="int8")
        calls = NodeCalls(placed, loop=0)
        made = [calls.make() for _ in range(4)]
        kernels = calls.layer.bytes_of_node
        # Three calls on both nodes, two on the first, each behind one of one expert somewhere.
        assert sum(kernels) == 4 * (3 * 4 + 2 * 2 + 5) * layout.expert_bytes
        most = 4 * 5 * layout.expert_bytes
        assert abs(kernels[0] - kernels[1] - 4 * 2 * 2 * layout.expert_bytes) <= most
        assert all(set(each.alone_s) == {1, 4} and set(each.together_s) == {1, 2, 4} for each in made)
        assert all(each.alone_gb_per_s > 0 and each.together_gb_per_s > 0 for each in made)
        with pytest.raises(ValueError, match="expected 4 on each of 2 nodes"):
            NodeCalls(PlacedLayers(layout, 1, 6, pool, isa="generic", activation="int8"), loop=0)
