"""Calibration's own calls beside a run: what they say is what went into them, and predictions by hand."""

import os

import numpy as np
import pytest

from moelab.bench.placement import with_uploads
from moelab.bench.placement.moment import BusyNodeCalls, Moment, times_of
from moelab.bench.placement.placed import Entries, PlacedLayers
from moelab.bench.placement.upload_moment import UploadMoment
from moelab.domain.expert_times import BusyNodes
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
              "kernel_s": 4 * expert_s, "kernel_beside_s": 8 * expert_s, "copy_beside_kernel": 0.25}  # fmt: skip
    return UploadMoment(**(values | changes))


@pytest.mark.parametrize("predict", [with_uploads.predict, with_uploads.predict_calibrated])
def test_prediction_with_uploads_by_hand(predict):
    """One layer, one step: 2 misses of 1 token, 1 copy. Kernels have half of their rate until the copy is done."""
    ids = np.array([[0, 1]], np.uint16)
    t = times(layer_s=0.0, token_s=0.0, sharpness=60.0)
    now, decided = moment(t, 1e-5), with_uploads.Decided([[ids]], [[[0]]])
    copy_s = t.expert_bytes / 0.25e9
    done = min(copy_s, 4e-5)
    assert predict(decided, t, now) == pytest.approx(done + max(0, 2 - done / 2e-5) * 1e-5, rel=0.02)
    naive = with_uploads.bytes_alone_s(decided, t, now)
    assert naive == pytest.approx(3 * t.expert_bytes / ((now.read_beside + 0.25) * 1e9))
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
    now = moment(t, 1e-5, read_alone=factor * t.read_gb_per_s, read_beside=0.1)
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
    t = times()
    both = moment(t, 1e-5).mean(moment(t, 1e-5, copy_alone=1.5, kernel_s=8e-5))
    assert (both.copy_alone, both.kernel_s, both.read_alone) == (1.0, pytest.approx(6e-5), t.read_gb_per_s)


@pytest.mark.parametrize("seed", range(5))
def test_calls_of_the_moment_give_back_the_share_that_made_them(seed):
    """Calls as the model predicts them at some share and read rate, then judged: the same share."""
    rng = np.random.default_rng(seed)
    share, t = rng.uniform(0.5, 1.2), times(sharpness=rng.uniform(2, 12))
    rates = rng.uniform(1.0, 6.0, 2)
    pair = []
    for rate in rates:
        busy = BusyNodes(read_gb_per_s=rate, kernel_share=share)
        made = t.model_copy(update={"busy": {2: busy}})
        call_s = {}
        for tokens in (1, 2, 4):
            entries = Entries(np.zeros(4, int), np.array([0, 0, 1, 1]), np.ones(4), np.full(4, tokens),
                              np.full(4, t.expert_bytes), np.array([tokens]), 2)  # fmt: skip
            call_s[tokens] = entries.seconds(made)
        pair.append(Moment(rate, call_s))
    now, rate = times_of(t, *pair)
    assert now.busy[2].kernel_share == pytest.approx(share)
    assert rate == now.busy[2].read_gb_per_s == pytest.approx(rates.mean())
    assert now.model_copy(update={"busy": t.busy}) == t, "nothing else changes"


@needs_native
@needs_two_cores
def test_calls_of_the_moment_are_of_all_nodes_alike():
    layout = ExpertLayout(64, 64, "int4_g32")
    with Pool(2, virtual_nodes=2) as pool:
        placed = PlacedLayers(layout, 2, 10, pool, isa="generic", activation="int8")
        calls = BusyNodeCalls(placed, loop=0)
        made = [calls.make() for _ in range(4)]
        kernels = calls.layer.bytes_of_node
        assert sum(kernels) == 4 * (3 * 4 + 3) * layout.expert_bytes  # three calls, each behind one of one expert
        assert abs(kernels[0] - kernels[1]) <= 12 * layout.expert_bytes
        assert all(each.read_gb_per_s > 0 and set(each.call_s) == {1, 2, 4} for each in made)
        with pytest.raises(ValueError, match="expected 4 on each of 2 nodes"):
            BusyNodeCalls(PlacedLayers(layout, 1, 6, pool, isa="generic", activation="int8"), loop=0)
