"""hybrid: hand-worked figures of contention, overlap and waiting; monotone in every byte; never below any bound."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moelab
from moelab.cost_model.hybrid import Rates, hybrid
from moelab.domain.machine import FastTierDevice, Machine, NumaNode
from tests.seeded_traces import plan_for, seeded_trace

GB = 1e9


def test_shares_of_the_memory():
    assert Rates(100, 0.6, 30).shared() == (60, 30), "both fit"
    assert Rates(100, 1.0, 30).shared() == (70, 30), "a small link gets all it asks for"
    assert Rates(100, 0.4, 80).shared() == (40, 60), "so does a small CPU"
    assert Rates(100, 1.0, 80).shared() == (50, 50)
    assert Rates(100, 1.0).shared() == (50, 50), "an infinite link is as fast as the memory"


def test_no_uploads_overlap_of_fast_tier_and_cpu():
    """3 GB at 100 x 0.5 GB/s: 60 ms on the CPU; 40 GB at 1000 GB/s: 40 ms on the fast tier; overhead 1 ms."""
    rates = Rates(100, 0.5, 25, 1000, layer_overhead_s=1e-3)
    time = hybrid([[3 * GB, 3 * GB]], [[40 * GB, 80 * GB]], np.zeros((1, 2)), rates)
    assert time.layer_s == pytest.approx(np.array([[0.061, 0.081]]))
    assert time.drain_s == 0


def test_uploads_slow_the_cpu_down_only_while_they_last():
    """100 GB/s, link 25: an upload of 1 GB lasts 40 ms, in which the CPU reads 3 of its 6 GB; then 30 ms alone."""
    time = hybrid([[6 * GB]], [[0.0]], [[1 * GB]], Rates(100, 1.0, 25))
    assert time.cpu_s[0, 0] == pytest.approx(0.040 + 0.030)
    longer = hybrid([[1.5 * GB]], [[0.0]], [[1 * GB]], Rates(100, 1.0, 25))
    assert longer.cpu_s[0, 0] == pytest.approx(0.020), "the CPU is done first; half of the upload is left"
    assert longer.drain_s == pytest.approx(0.020)


def test_a_layer_waits_for_what_it_admitted_one_step_before():
    """Two layers, no misses, 10 ms of fast tier each; layer 0 uploads 1 GB = 40 ms. Layer 1 need not wait; layer 0 of
    the next step, 20 ms later, waits for the other 20.
    """
    fast = np.full((2, 2), 10 * GB)
    uploads = np.array([[1 * GB, 0], [0, 0]])
    time = hybrid(np.zeros((2, 2)), fast, uploads, Rates(100, 1.0, 25, 1000))
    assert time.wait_s == pytest.approx(np.array([[0, 0], [0.020, 0]]))
    later = hybrid(np.zeros((2, 2)), fast, uploads[:, ::-1], Rates(100, 1.0, 25, 1000))
    assert later.wait_s == pytest.approx(np.array([[0, 0], [0, 0.020]]))
    one_layer = hybrid(np.zeros((2, 1)), np.full((2, 1), 10 * GB), [[GB], [0]], Rates(100, 1.0, 25, 1000))
    assert one_layer.wait_s == pytest.approx(np.array([[0], [0.030]]))


def test_an_idle_link_begins_late():
    """100 GB/s, link 25, 8 ms until it begins: the CPU reads 0.8 GB alone, 3 of its 6 beside the 40 ms of the upload,
    the rest alone; a link that is still busy does not begin anew.
    """
    rates = Rates(100, 1.0, 25, link_start_s=0.008)
    time = hybrid([[6 * GB]], [[0.0]], [[1 * GB]], rates)
    assert time.cpu_s[0, 0] == pytest.approx(0.008 + 0.040 + (6 - 0.8 - 3.0) / 100)
    short = hybrid([[0.3 * GB]], [[0.0]], [[1 * GB]], rates)
    assert short.cpu_s[0, 0] == pytest.approx(0.003), "done before the link begins"
    assert short.drain_s == pytest.approx(0.005 + 0.040)
    waits = hybrid(
        np.zeros((3, 1)), np.full((3, 1), 2 * GB), [[GB], [GB], [0]], Rates(100, 1.0, 25, 1000, link_start_s=0.008)
    )
    assert waits.wait_s[:, 0] == pytest.approx([0, 0.006 + 0.040, 0.006 + 0.040]), "2 ms of the fast tier go by first"
    two = hybrid(np.zeros((1, 2)), np.full((1, 2), 20 * GB), [[GB, GB]], Rates(100, 1.0, 25, 1000, link_start_s=0.008))
    assert two.drain_s == pytest.approx(0.008 + 0.080 - 0.040), "the second upload finds the link busy"
    ahead = Rates(100, 1.0, 25, 1000, layer_overhead_s=0.01, link_start_s=0.008)
    after = hybrid(np.zeros((1, 2)), np.zeros((1, 2)), [[GB, 0]], ahead)
    assert after.drain_s == pytest.approx(0.038), "overhead goes by while the link begins"


def test_many_tokens_are_bound_by_computing():
    time = hybrid([[1 * GB]], [[0.0]], [[0.0]], Rates(100, cpu_gflop_per_s=500), cpu_gflop=[[20.0]])
    assert time.cpu_s[0, 0] == pytest.approx(0.040)


RATES = st.builds(
    Rates,
    read_gb_per_s=st.floats(1, 500),
    efficiency=st.floats(0.1, 1),
    link_gb_per_s=st.floats(1, 500),
    fast_read_gb_per_s=st.floats(100, 3000),
    layer_overhead_s=st.floats(0, 1e-3),
)
LATE = st.floats(0, 5e-3)  # fmt: skip


def drawn(seed, num_steps, num_layers):
    rng = np.random.default_rng(seed)
    shape = (3, num_steps, num_layers)
    return rng.exponential(0.1 * GB, shape) * (rng.random(shape) < 0.7)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 6), layers=st.integers(1, 4), rates=RATES, late=LATE)
def test_never_below_a_bound(seed, steps, layers, rates, late):
    rates = replace(rates, link_start_s=late)
    misses, fast, uploads = drawn(seed, steps, layers)
    time = hybrid(misses, fast, uploads, rates)
    total_s = time.layer_s.sum() + time.drain_s
    tolerance = 1 - 1e-9
    assert (time.layer_s >= tolerance * (rates.layer_overhead_s + misses / (rates.cpu_gb_per_s * GB))).all()
    assert (time.layer_s >= tolerance * fast / (rates.fast_read_gb_per_s * GB)).all()
    assert total_s >= tolerance * (misses.sum() + uploads.sum()) / (rates.read_gb_per_s * GB), "memory reads all of it"
    assert total_s >= tolerance * uploads.sum() / (rates.link_gb_per_s * GB)
    nothing_moves = hybrid(misses, fast, np.zeros_like(uploads), rates)
    assert total_s >= tolerance * nothing_moves.layer_s.sum()
    serial = (misses.sum() / rates.cpu_gb_per_s + fast.sum() / rates.fast_read_gb_per_s) / GB
    serial += uploads.sum() / GB / min(rates.link_gb_per_s, rates.read_gb_per_s) + misses.size * rates.layer_overhead_s
    serial += (uploads > 0).sum() * late
    assert total_s <= serial * (1 + 1e-9), "nothing overlaps"


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6), steps=st.integers(1, 5), layers=st.integers(1, 4), rates=RATES, which=st.integers(0, 2)
)
def test_monotone_in_bytes(seed, steps, layers, rates, which):
    """One byte count more, anywhere, and the whole takes no less."""
    data = drawn(seed, steps, layers)
    before = hybrid(*data, rates)
    rng = np.random.default_rng(seed + 1)
    data[which, rng.integers(steps), rng.integers(layers)] += 0.05 * GB
    after = hybrid(*data, rates)
    assert after.layer_s.sum() + after.drain_s >= (before.layer_s.sum() + before.drain_s) * (1 - 1e-9)


def test_refusals():
    with pytest.raises(ValueError, match=r"link_gb_per_s is 0, expected more than 0"):
        Rates(100, 1.0, 0)
    with pytest.raises(ValueError, match=r"efficiency is 1\.5, expected at most 1"):
        Rates(100, 1.5)
    with pytest.raises(ValueError, match=r"link_start_s is -1, expected 0 or more"):
        Rates(100, link_start_s=-1)
    with pytest.raises(ValueError, match=r"fast_bytes is \(1, 2\), expected \[steps, layers\]"):
        hybrid(np.zeros((1, 3)), np.zeros((1, 2)), np.zeros((1, 3)), Rates(1))
    with pytest.raises(ValueError, match="expected finite numbers of 0 or more"):
        hybrid([[-1.0]], [[0.0]], [[0.0]], Rates(1))


@pytest.mark.parametrize("policy", ["lru", "prefetch_markov"])
def test_bytes_of_a_simulation(policy):
    """Sums equal the simulation's own bytes; the prediction of a machine with a fast tier is their time."""
    trace = seeded_trace(6, expert_bytes=(100, 200, 300), batch=2)
    plan = plan_for(trace, policy, slots_per_layer=4)
    node = NumaNode(name="node0", cores=(0,), memory_bytes=2**30, read_gb_per_s={1: 20.0})
    fast = FastTierDevice(name="fast0", device="paper", memory_bytes=2**30, read_gb_per_s=500, link_gb_per_s=10)
    machine = Machine(name="paper", source="preset", nodes=(node,), fast_tiers=(fast,), layer_overhead_s=1e-6)
    result = moelab.simulate(trace, plan, machine, phase="decode", progress=False)
    parts = result.bytes_of_layer_steps()
    assert parts["upload_bytes"].sum() == pytest.approx(result.bytes_of_link["fast0"])
    both = parts["miss_bytes"].sum() + parts["upload_bytes"].sum()
    assert both == pytest.approx(result.bytes_of_node["node0"])
    time = result.time(Rates(20, 1.0, 10, 500, 1e-6))
    total_s = time.step_s.sum() + time.drain_s
    assert result.prediction["predicted_ms_per_token"] == pytest.approx(1e3 * total_s / result.num_tokens)
    assert time.to_frame().ms.sum() == pytest.approx(1e3 * time.step_s.sum())
